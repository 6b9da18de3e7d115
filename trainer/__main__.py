"""Runs one of the trainer's programs: `python -m trainer PROGRAM [options]`."""

import importlib
import sys

from trainer.errors import UsageError, run_command

PROGRAMS = {
    "demo": "trains a small language model with Muon and with AdamW, side by side",
    "lm": "trains a language model on text",
    "moe": "trains a language model with a mixture of experts in every block",
    "mla": "trains a language model with multi-head latent attention, using MuonClip",
    "images": "trains a convolutional network on images",
    "finetune": "fine-tunes a model of `lm` on another text",
    "plot-max-logits": "draws the attention logits of finished runs of `mla`",
}
USAGE = "\n".join(
    [
        "usage: python -m trainer PROGRAM [--help] [options]\n",
        *(f"  {name:<17}{purpose}" for name, purpose in PROGRAMS.items()),
    ]
)


def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in PROGRAMS:
        print(USAGE)
        sys.exit(name not in ("-h", "--help"))
    try:
        program = importlib.import_module(f"trainer.programs.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:  # `make demo` installs only what the demo needs
        raise UsageError(
            f"python -m trainer {name} needs the package {error.name}; install what all programs "
            "need by `.venv/bin/python -m pip install --group trainer`"
        ) from error
    program.main(arguments)


if __name__ == "__main__":
    run_command(main)
