"""Experiments with the trainer; each is a module with the functions `run` and `report`.

A `Plan` defines the settings that vary. `Trials` runs each trial once and saves its result as a
line of JSON in `results/`. `report` makes tables and a figure from these lines.
"""
