"""One module for each program, with its settings and a `main` that takes its arguments."""
