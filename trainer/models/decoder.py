"""A decoder-only transformer in Flax NNX: RMSNorm, rotary positions, SwiGLU, an untied head.

Kernels keep the shapes that Flax gives them, so attention has three axes: (width, heads,
head_dim) for query, key and value, (heads, head_dim, width) for the output.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from muon_jax.attention import reporting
from trainer.errors import UsageError

ROTARY_BASE = 10_000.0  # Su et al. 2021, "RoFormer"

_attend = reporting(jax.nn.dot_product_attention)

MakeLayer = Callable[..., nnx.Module]
"""Makes a layer of (batch, length, width) from `(config, rngs=...)`."""


Options = Mapping[str, Any]
NO_OPTIONS: Options = MappingProxyType({})


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the transformer."""

    width: int = 128
    """Features per token; a multiple of 2 × heads."""
    layers: int = 4
    """Number of blocks."""
    heads: int = 4
    """Attention heads per block."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads) < 1:
            raise UsageError("--width, --layers and --heads must be at least 1")
        if self.width % (2 * self.heads):
            raise UsageError(
                f"--width {self.width} with --heads {self.heads}: rotary positions need a width "
                f"that is a multiple of {2 * self.heads}"
            )

    @property
    def hidden(self) -> int:
        """Width inside the MLP: 8/3 of `width`.

        Its three matrices then cost as much as two with 4 · `width`.
        """
        return -(-8 * self.width // 3 // 32) * 32


class Attention(nnx.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        width, heads = config.width, (config.heads, config.width // config.heads)
        self.query = nnx.LinearGeneral(width, heads, use_bias=False, rngs=rngs)
        self.key = nnx.LinearGeneral(width, heads, use_bias=False, rngs=rngs)
        self.value = nnx.LinearGeneral(width, heads, use_bias=False, rngs=rngs)
        self.out = nnx.LinearGeneral(
            heads,
            width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=residual_init(config),
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "batch length width"], *, report: bool = False
    ) -> Float[Array, "batch length width"]:
        query, key, value = rotate(self.query(x)), rotate(self.key(x)), self.value(x)
        return self.out(_attend(query, key, value, is_causal=True, module=self if report else None))


class SwiGLU(nnx.Module):
    """Gated MLP (Shazeer 2020): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs) -> None:
        width, hidden = config.width, config.hidden
        self.gate = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(
            hidden, width, use_bias=False, kernel_init=residual_init(config), rngs=rngs
        )

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: DecoderConfig, attention: MakeLayer, mlp: MakeLayer, *, rngs: nnx.Rngs
    ) -> None:
        self.attention_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.attention = attention(config, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.mlp = mlp(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], *, mlp_options: Options, **options: Any
    ) -> Float[Array, "batch length width"]:
        x = x + self.attention(self.attention_norm(x), **options)
        return x + self.mlp(self.mlp_norm(x), **mlp_options)


class Decoder(nnx.Module):
    """Maps tokens to the logits of the token that follows each of them.

    Args:
        attention: makes the attention of a block from the config.
        mlp: makes the layer that follows the attention.
    """

    def __init__(
        self,
        config: DecoderConfig,
        vocabulary: int,
        *,
        attention: MakeLayer = Attention,
        mlp: MakeLayer = SwiGLU,
        rngs: nnx.Rngs,
    ) -> None:
        self.embed = nnx.Embed(vocabulary, config.width, rngs=rngs)
        self.blocks = nnx.List(
            [Block(config, attention, mlp, rngs=rngs) for _ in range(config.layers)]
        )
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.head = nnx.Linear(
            config.width,
            vocabulary,
            use_bias=False,
            kernel_init=nnx.initializers.zeros_init(),  # the first prediction is uniform
            rngs=rngs,
        )

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        *,
        mlp_options: Options = NO_OPTIONS,
        **attention_options: Any,
    ) -> Float[Array, "batch length vocab"]:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, mlp_options=mlp_options, **attention_options)
        return self.head(self.norm(x))


def rotate(
    x: Float[Array, "batch length heads head_dim"],
) -> Float[Array, "batch length heads head_dim"]:
    """Rotates each pair (i, i + head_dim/2) of features by an angle that grows with position."""
    length, half = x.shape[1], x.shape[-1] // 2
    frequencies = ROTARY_BASE ** (-jnp.arange(half) / half)
    angles = jnp.outer(jnp.arange(length), frequencies)[None, :, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def residual_init(config: DecoderConfig, batch_axis: int | Sequence[int] = ()) -> nnx.Initializer:
    """Returns an initializer that keeps the residual stream's variance near 1 for any depth."""
    return nnx.initializers.variance_scaling(
        1 / (2 * config.layers), "fan_in", "normal", batch_axis=batch_axis
    )
