"""Trains a small language model twice, with Muon and with AdamW, in alternating steps.

The text is the source of Python's standard library. Both runs start from the same weights and see
the same batches.

python -m trainer demo

python -m trainer demo --resume                             # after Ctrl-C
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jax
from flax import nnx
from rich.console import Console

import muon_jax
from trainer.command_line import read_settings
from trainer.data.text import read_text
from trainer.data.tokens import Tokens, tokenize
from trainer.devices import DeviceConfig, Devices
from trainer.interrupts import Interrupts
from trainer.language import TextConfig, language_task
from trainer.models.decoder import Decoder, DecoderConfig
from trainer.optimizers import OptimizerConfig, make_optimizer
from trainer.records.plots import plot_losses
from trainer.records.side_by_side import SideBySide
from trainer.task import Result
from trainer.training import RunConfig, by_steps, take_turns

OPTIMIZERS = {"Muon": OptimizerConfig("muon-default"), "AdamW": OptimizerConfig("adamw")}
OUT = Path("runs/demo")


@dataclass(frozen=True)
class Config:
    """All settings of the two runs; each optimizer has its default learning rate."""

    text: TextConfig = field(default_factory=lambda: TextConfig(batch_size=16))
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    run: RunConfig = field(
        default_factory=lambda: RunConfig(steps=250, eval_every=50, checkpoint_every=125, out=OUT)
    )
    devices: DeviceConfig = field(default_factory=DeviceConfig)


def train(config: Config) -> dict[str, Result]:
    """Prints how Muon routes the parameters, trains both runs, and returns the results by name.

    Raises:
        StoppedError: a signal came; both runs saved a checkpoint.
    """
    devices = Devices.start(config.devices)
    text = read_text(config.text.data, config.text.pattern)
    tokens = tokenize(text, config.text.tokenizer)
    quiet = config.run.quiet or not devices.first
    if not quiet:
        muon = make_optimizer(OPTIMIZERS["Muon"], config.run.steps)
        print(muon_jax.explain(nnx.state(_model(config, tokens), nnx.Param), muon))
    with (
        SideBySide(list(OPTIMIZERS), config.run.steps, quiet=quiet) as display,
        Interrupts() as interrupts,
    ):
        running = []
        for name, optimizer in OPTIMIZERS.items():
            task = language_task(
                text,
                tokens,
                _model(config, tokens),
                name="demo",
                settings=asdict(config.decoder),
                text=config.text,
                seed=config.run.seed,
            )
            run = replace(config.run, out=(config.run.out or OUT) / name.lower())
            running.append(by_steps(task, optimizer, run, devices, display.runs[name], interrupts))
        return dict(zip(OPTIMIZERS, take_turns(running), strict=True))


def report(config: Config, results: Mapping[str, Result]) -> None:
    """Draws both losses in one chart, and prints the last losses and where the files are."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    out = results["Muon"].folder.path.parent
    ends = {name: list(result.held_out_loss.items())[-1] for name, result in results.items()}
    rates = ", ".join(f"{name} {OPTIMIZERS[name].peak:g}" for name in results)
    plot_losses(
        out / "losses.png",
        {name: (result.train_loss, result.held_out_loss) for name, result in results.items()},
        title=" and ".join(results),
        settings=f"{_parameters(results):.2f} M parameters; learning rates: {rates}",
        unit="nats per byte" if config.text.tokenizer == "bytes" else "nats per token",
    )
    for name, (step, loss) in ends.items():
        console.print(f"{name:<6} held-out loss {loss:.4f} after {step} steps", style="bold")
    reached = [
        step for step, loss in results["Muon"].held_out_loss.items() if loss <= ends["AdamW"][1]
    ]
    if reached:
        console.print(f"Muon reached the last loss of AdamW after {min(reached)} steps.")
    console.print(f"  both curves  {out / 'losses.png'}")
    for name, result in results.items():
        console.print(f"  {name:<13}{result.folder.path}: metrics, TensorBoard, checkpoints")


def _model(config: Config, tokens: Tokens) -> Decoder:
    rngs = nnx.Rngs(config.run.seed)
    return nnx.jit(lambda rngs: Decoder(config.decoder, tokens.vocabulary, rngs=rngs))(rngs)


def _parameters(results: Mapping[str, Result]) -> float:
    leaves = jax.tree.leaves(nnx.state(results["Muon"].model, nnx.Param))
    return sum(leaf.size for leaf in leaves) / 1e6


def main(arguments: Sequence[str]) -> None:
    config = read_settings("demo", Config, __doc__, arguments)
    report(config, train(config))
