"""Runs one of the trainer's programs: `python -m trainer PROGRAM [options]`."""

import importlib
import sys

from trainer.errors import run_command

PROGRAMS = {
    "lm": "trains a language model on text",
    "moe": "trains a language model with a mixture of experts in every block",
    "mla": "trains a language model with multi-head latent attention, by MuonClip",
    "images": "trains a convolutional network on images",
    "finetune": "fine-tunes what `lm` trained on another text",
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
    importlib.import_module(f"trainer.programs.{name.replace('-', '_')}").main(arguments)


if __name__ == "__main__":
    run_command(main)
