"""What the examples share. Each file has one idea; an example is its own entry point.

text → tokens → windows     from files on disk to batches of token windows
decoder, sampling           the language model, and text drawn from it
optimizers                  names → Optax transformations and learning-rate schedules
training                    the loop, with checkpoints, metrics, progress and plots around it
"""
