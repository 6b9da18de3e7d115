"""Trains a small language model with a mixture of experts in every block.

python -m trainer moe

python -m trainer moe --experts 16 --chosen 1 --balance 0    # which experts take everything?
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import jax
from flax import nnx
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.table import Table

import muon_jax
from trainer.command_line import read_settings
from trainer.data.tokens import BYTES
from trainer.devices import DeviceConfig
from trainer.language import (
    LanguageResult,
    SampleConfig,
    TextConfig,
    compare,
    report,
    train_language_model,
)
from trainer.models.decoder import Decoder
from trainer.models.mixture import Mixture, MixtureConfig, collect_routing
from trainer.optimizers import OptimizerConfig, make_optimizer
from trainer.records.load_plots import plot_load
from trainer.records.metrics import read_layers
from trainer.records.run_folder import RunFolder
from trainer.task import Measured, Objective
from trainer.training import RunConfig

PLOT = "expert_load.png"


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    text: TextConfig = field(default_factory=lambda: TextConfig(batch_size=16))
    decoder: MixtureConfig = field(default_factory=MixtureConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=300))
    sample: SampleConfig = field(default_factory=SampleConfig)
    devices: DeviceConfig = field(default_factory=DeviceConfig)


def train(config: Config) -> LanguageResult:
    """Runs one training from data to sample."""
    result = train_language_model(
        lambda vocabulary, rngs: Decoder(config.decoder, vocabulary, mlp=Mixture, rngs=rngs),
        name="moe",
        settings=asdict(config.decoder),
        text=config.text,
        sample=config.sample,
        optimizer=config.optimizer,
        run=config.run,
        devices=config.devices,
        objective=balanced_loss(config.decoder.balance),
    )
    plot_load(result.run.folder.path / PLOT, result.run.folder)
    return result


def balanced_loss(weight: float) -> Objective:
    """Returns the language model's objective with the gradient of the load-balancing loss added.

    The reported loss excludes the load-balancing loss, to stay comparable with other models.
    """

    def objective(
        model: Decoder, windows: Int[Array, "batch context+1"]
    ) -> tuple[Float[Array, ""], Measured]:
        logits, reported = _forward(model, windows[:, :-1])
        loss, measured = compare(logits, windows[:, 1:])
        routing = collect_routing(reported)
        penalty = weight * sum(routing["imbalance"].values())
        return loss + (penalty - jax.lax.stop_gradient(penalty)), {**measured, **routing}

    return objective


_forward = nnx.capture(
    lambda model, tokens: model(tokens, mlp_options={"report": True}), nnx.Intermediate
)


def explain(config: MixtureConfig) -> muon_jax.Explanation:
    """Returns how Muon's rules route the parameters, without creating arrays."""
    model = nnx.eval_shape(lambda: Decoder(config, BYTES, mlp=Mixture, rngs=nnx.Rngs(0)))
    muon = make_optimizer(OptimizerConfig("muon"), steps=1)
    return muon_jax.explain(nnx.state(model, nnx.Param), muon)


def report_load(folder: RunFolder) -> None:
    """Prints the share of the held-out tokens that each expert takes at the end."""
    layers = {layer: load[-1] for layer, load in read_layers(folder, "held_out/load").items()}
    table = Table("load", *(f"expert {index}" for index in range(max(map(len, layers.values())))))
    for layer, load in layers.items():
        table.add_row(layer, *(f"{share:.1%}" for share in load))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"  load        {folder.path / PLOT}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    config = read_settings("moe", Config, __doc__, arguments)
    if not config.run.quiet:
        print(explain(config.decoder))
    result = train(config)
    report(result)
    report_load(result.run.folder)
