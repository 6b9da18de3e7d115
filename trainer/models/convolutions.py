"""A small residual network of convolutions in Flax Linen."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jaxtyping import Array, Float

from trainer.errors import UsageError


@dataclass(frozen=True)
class ConvolutionConfig:
    """Size of the network."""

    width: int = 16
    """Channels of the first stage; each further stage has twice as many at half the size."""
    stages: int = 3
    """Pairs of convolutions of one size."""
    stem_stride: int = 1
    """Stride of the first layer; its kernel grows with the stride. Twice the stride makes the
    network almost four times cheaper."""

    def __post_init__(self) -> None:
        if min(self.width, self.stages, self.stem_stride) < 1:
            raise UsageError("--width, --stages and --stem-stride must be at least 1")


class Layer(nn.Module):
    """Convolution, norm over the channels, GELU."""

    channels: int
    stride: int = 1
    side: int = 3

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch new_height new_width channels"]:
        x = nn.Conv(
            self.channels, (self.side, self.side), self.stride, use_bias=False, name="conv"
        )(x)
        return nn.gelu(nn.LayerNorm(name="norm")(x))


class ConvolutionalNet(nn.Module):
    """Maps images to the logits of their classes."""

    config: ConvolutionConfig
    classes: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch classes"]:
        stride = self.config.stem_stride
        x = Layer(self.config.width, stride, side=2 * stride + 1, name="stem")(images)
        for stage in range(self.config.stages):
            channels = self.config.width * 2**stage
            x = Layer(channels, stride=2 if stage else 1, name=f"stage_{stage}")(x)
            x = x + Layer(channels, name=f"residual_{stage}")(x)
        zeros = nn.initializers.zeros_init()  # the first prediction is uniform
        return nn.Dense(self.classes, kernel_init=zeros, name="head")(x.mean(axis=(1, 2)))


def make_network(
    config: ConvolutionConfig, shape: tuple[int, int, int], classes: int, rngs: nnx.Rngs
) -> nnx.Module:
    """Returns the network as an NNX module, which the training loop takes.

    Args:
        shape: of an image: height, width, channels.
        rngs: draws the weights and is not kept.
    """
    bridged = nnx.bridge.ToNNX(ConvolutionalNet(config, classes))
    bridged.lazy_init(jnp.zeros((1, *shape)), rngs=rngs)
    return bridged
