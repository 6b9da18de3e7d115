"""Measurements of time, compiled work and memory: `python -m benchmarks.step` and so on."""
