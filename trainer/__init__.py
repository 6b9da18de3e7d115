"""A complete trainer for small models: command line, resume, checkpoints, metrics and plots.

`python -m trainer --help` lists the programs, which are in `programs/`. `data/` turns files into
batches, `models/` holds the networks, `records/` holds what a run leaves on disk. A program
describes a `task`; `training` runs it with one of the `optimizers` on the chosen `devices`.
`language` and `classification` hold what the tasks on text and on images share.
"""
