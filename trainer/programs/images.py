"""Trains a convolutional network in Flax Linen on images, by default scikit-learn's digits.

python -m trainer images

python -m trainer images --optimizer sgd-nesterov --learning-rate 0.1

python -m trainer images --explain    # how Muon routes the kernels, and its cost

python -m trainer images --data-dir /usr/share/datasets/fashion-mnist \
    --stem-stride 2 --batch-size 128 --steps 1400 --target-accuracy 0.9
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from flax import nnx

import muon_jax
from trainer.classification import ImageConfig, ImageResult, report, train_classifier
from trainer.command_line import read_settings
from trainer.data.images import read_images
from trainer.devices import DeviceConfig
from trainer.models.convolutions import ConvolutionConfig, make_network
from trainer.optimizers import OptimizerConfig, make_optimizer
from trainer.training import RunConfig


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    images: ImageConfig = field(default_factory=ImageConfig)
    network: ConvolutionConfig = field(default_factory=ConvolutionConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(warmup_steps=20))
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=300, eval_every=20))
    devices: DeviceConfig = field(default_factory=DeviceConfig)
    explain: bool = False
    """Print how Muon routes each parameter, and train nothing."""


def train(config: Config) -> ImageResult:
    """Runs one training; sweeps call it with `RunConfig(quiet=True)`."""
    return train_classifier(
        partial(make_network, config.network),
        name="images",
        settings=asdict(config.network),
        images=config.images,
        optimizer=config.optimizer,
        run=config.run,
        devices=config.devices,
    )


def explain(config: Config) -> muon_jax.Explanation:
    """Returns how Muon would treat every parameter of the network."""
    data = read_images(config.images.data_dir)
    shape = data.train.images.shape[1:]
    model = nnx.eval_shape(lambda: make_network(config.network, shape, data.classes, nnx.Rngs(0)))
    muon = make_optimizer(OptimizerConfig("muon"), config.run.steps)
    return muon_jax.explain(nnx.state(model, nnx.Param), muon)


def main(arguments: Sequence[str]) -> None:
    config = read_settings("images", Config, __doc__, arguments)
    if config.explain:
        print(explain(config))
    else:
        report(train(config), config.images.target_accuracy)
