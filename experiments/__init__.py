"""Questions put to the trainer, each a module with `run` and `report`.

A `Plan` says what is varied, `Trials` runs each trial once and keeps a line of JSON for it in
`results/`, and a report makes tables and a figure from these lines.
"""
