"""Trains a convolutional network in Flax Linen on images, by default scikit-learn's digits.

python examples/train_images.py

python examples/train_images.py --optimizer sgd-nesterov --learning-rate 0.1

python examples/train_images.py --explain    # where Muon sends the kernels, and what it costs

python examples/train_images.py --data-dir /usr/share/datasets/fashion-mnist \
    --stem-stride 2 --batch-size 128 --steps 1400 --target-accuracy 0.9
"""

from dataclasses import asdict, dataclass, field
from functools import partial

from common.classification import ImageConfig, ImageResult, report, train_classifier
from common.command_line import read_settings
from common.convolutions import ConvolutionConfig, make_network
from common.devices import DeviceConfig
from common.errors import run_command
from common.images import read_images
from common.optimizers import OptimizerConfig
from common.training import RunConfig
from flax import nnx

import muon_jax


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    images: ImageConfig = field(default_factory=ImageConfig)
    network: ConvolutionConfig = field(default_factory=ConvolutionConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(warmup_steps=20))
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=300, eval_every=20))
    devices: DeviceConfig = field(default_factory=DeviceConfig)
    explain: bool = False
    """Print where Muon sends each parameter, and train nothing."""


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
    """Says what Muon would do with every parameter of the network."""
    data = read_images(config.images.data_dir)
    shape = data.train.images.shape[1:]
    model = nnx.eval_shape(lambda: make_network(config.network, shape, data.classes, nnx.Rngs(0)))
    return muon_jax.explain(nnx.state(model, nnx.Param))


def main() -> None:
    config = read_settings(Config, __doc__)
    if config.explain:
        print(explain(config))
    else:
        report(train(config), config.images.target_accuracy)


if __name__ == "__main__":
    run_command(main)
