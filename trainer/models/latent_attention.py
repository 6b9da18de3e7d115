"""Multi-head latent attention (DeepSeek-AI 2024): keys and values from one small latent.

A head's query and key have two parts side by side. The content part comes from the latents and has
no position. The rotary part encodes the position, and all heads share its key.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

import muon_jax
from muon_jax.attention import reporting
from trainer.errors import UsageError
from trainer.models.decoder import DecoderConfig, residual_init, rotate

_attend = reporting(jax.nn.dot_product_attention)


@dataclass(frozen=True)
class LatentConfig(DecoderConfig):
    """Size of the transformer and of its latents."""

    width: int = 96
    """Features per token; a multiple of 2 × heads."""
    layers: int = 3
    """Number of blocks."""
    query_latent: int = 64
    """Width of the latent that makes the queries."""
    key_value_latent: int = 32
    """Width of the latent of keys and values. A cache would hold only it and the rotary key."""
    content: int = 24
    """Width of the content part of a head."""
    rotary: int = 8
    """Width of the rotary part of a head, even."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.query_latent, self.key_value_latent, self.content, self.rotary) < 1:
            raise UsageError(
                "--query-latent, --key-value-latent, --content and --rotary must be at least 1"
            )
        if self.rotary % 2:
            raise UsageError(f"--rotary {self.rotary}: features turn in pairs; give an even number")

    @property
    def head(self) -> int:
        return self.content + self.rotary


class LatentAttention(nnx.Module):
    """Causal self-attention through latents."""

    def __init__(self, config: LatentConfig, *, rngs: nnx.Rngs) -> None:
        width, heads, head = config.width, config.heads, config.head
        self.content = config.content
        self.q_down = nnx.Linear(width, config.query_latent, use_bias=False, rngs=rngs)
        self.q_norm = nnx.RMSNorm(config.query_latent, rngs=rngs)
        self.q_up = nnx.LinearGeneral(config.query_latent, (heads, head), use_bias=False, rngs=rngs)
        self.kv_down = nnx.Linear(width, config.key_value_latent, use_bias=False, rngs=rngs)
        self.kv_norm = nnx.RMSNorm(config.key_value_latent, rngs=rngs)
        # Values are as wide as a whole head, because the fused attention requires equal widths.
        self.kv_up = nnx.LinearGeneral(
            config.key_value_latent, (heads, config.content + head), use_bias=False, rngs=rngs
        )
        self.k_rotary = nnx.Linear(width, config.rotary, use_bias=False, rngs=rngs)
        self.out = nnx.LinearGeneral(
            (heads, head),
            width,
            axis=(-2, -1),
            use_bias=False,
            kernel_init=residual_init(config),
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "batch length width"], *, report: bool = False
    ) -> Float[Array, "batch length width"]:
        latent = self.q_norm(self.q_down(x))
        query, query_rotary = jnp.split(self.q_up(latent), [self.content], axis=-1)
        latent = self.kv_norm(self.kv_down(x))
        key, value = jnp.split(self.kv_up(latent), [self.content], axis=-1)
        key_rotary = rotate(self.k_rotary(x)[:, :, None])
        key_rotary = jnp.broadcast_to(key_rotary, query_rotary.shape)
        query = jnp.concatenate([query, rotate(query_rotary)], axis=-1)
        key = jnp.concatenate([key, key_rotary], axis=-1)
        return self.out(_attend(query, key, value, is_causal=True, module=self if report else None))


def clip_target(config: LatentConfig) -> muon_jax.QKTarget:
    """Returns what QK-Clip scales: content parts by √(τ/S), the rotary query by τ/S."""
    queries, keys_and_values = (
        muon_jax.MatrixAxes(0, (1, 2), muon_jax.Split((config.content, width), interleaved=True))
        for width in (config.rotary, config.head)
    )
    return muon_jax.QKTarget(
        query=muon_jax.QKPart("q_up", queries, part=0),
        rotary_query=muon_jax.QKPart("q_up", queries, part=1),
        key=muon_jax.QKPart("kv_up", keys_and_values, part=0),
        shared_key="k_rotary",
    )
