"""What the examples share, one idea a file.

From files on disk to batches: `text`, `tokens`, `windows`, or `images`, then `batches`. The model:
`decoder` and `sampling`, or `convolutions`. What trains it: `optimizers`, `task`, `training`. What
a run leaves behind: `run_folder`, `checkpoints`, `metrics`, `plots`, `progress`. How a run ends
early: `errors`, `interrupts`. `language` puts them together for text, `classification` for images.
"""
