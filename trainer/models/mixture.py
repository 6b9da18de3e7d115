"""A mixture of experts instead of the MLP (Shazeer et al. 2017); each token uses a few of them.

Each array stores one matrix of every expert, (experts, rows, cols). Each window of tokens is a
separate group, as in GShard (Lepikhin et al. 2020): an expert has places for a part of the tokens
of a window, and takes them in their order, so that no token depends on a later one.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from trainer.errors import UsageError
from trainer.models.decoder import DecoderConfig, residual_init

REPORT = "routing"


@dataclass(frozen=True)
class MixtureConfig(DecoderConfig):
    """Size of the transformer and of its mixtures."""

    width: int = 64
    """Features per token; a multiple of 2 × heads."""
    layers: int = 2
    """Number of blocks."""
    experts: int = 8
    """Experts in each block."""
    chosen: int = 2
    """Experts for each token. Together they are as wide as the MLP that they replace."""
    capacity: float = 1.5
    """Places of an expert, divided by its number of tokens if all experts had the same load."""
    balance: float = 0.01
    """Weight of the load-balancing loss; at 0, a few experts may take all tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.chosen <= self.experts:
            raise UsageError(
                f"--chosen {self.chosen}: give at least 1 and at most --experts {self.experts}"
            )
        if not 0 < self.capacity < math.inf:
            raise UsageError(f"--capacity {self.capacity}: give a number above 0")
        if not 0 <= self.balance < math.inf:
            raise UsageError(f"--balance {self.balance}: give a number of at least 0")

    @property
    def expert_hidden(self) -> int:
        """Width inside an expert."""
        return -(-self.hidden // self.chosen)

    def places(self, length: int) -> int:
        """Returns how many tokens of a window an expert takes."""
        return min(length, math.ceil(self.capacity * self.chosen * length / self.experts))


class Routing(NamedTuple):
    """Where the tokens go."""

    combine: Float[Array, "batch length experts places"]
    """The weight of an expert's output for a token, at the token's place in that expert."""
    load: Float[Array, "experts"]
    """Each expert's share of all choices."""
    dropped: Float[Array, ""]
    """Share of the choices for which the expert had no place left."""
    imbalance: Float[Array, ""]
    """Load-balancing loss: 1 if all experts have the same load, otherwise more."""

    @property
    def dispatch(self) -> Float[Array, "batch length experts places"]:
        """1 where a token has a place in an expert, otherwise 0."""
        return (self.combine > 0).astype(self.combine.dtype)


def route(logits: Float[Array, "batch length experts"], chosen: int, places: int) -> Routing:
    """Sends each token to the experts of its largest logits, if they have places left."""
    experts = logits.shape[-1]
    odds = jax.nn.softmax(logits)
    top, index = jax.lax.top_k(odds, chosen)
    one_hot = jax.nn.one_hot(index, experts)  # batch, length, chosen, experts
    takes = one_hot.sum(axis=2)
    weights = jnp.einsum("blk,blke->ble", top / top.sum(axis=-1, keepdims=True), one_hot)
    earlier = (jnp.cumsum(takes, axis=1) - takes).astype(jnp.int32)
    place = takes[..., None] * jax.nn.one_hot(earlier, places)  # zero beyond the last place
    load = takes.mean(axis=(0, 1)) / chosen
    return Routing(
        combine=weights[..., None] * place,
        load=load,
        dropped=1 - place.sum() / takes.sum(),
        # Fedus et al. 2021, "Switch Transformers", equation 4: the load itself has no gradient.
        imbalance=experts * jnp.sum(load * odds.mean(axis=(0, 1))),
    )


class Experts(nnx.Module):
    """One gated MLP for each expert, stored in three arrays."""

    def __init__(self, config: MixtureConfig, *, rngs: nnx.Rngs) -> None:
        experts, width, hidden = config.experts, config.width, config.expert_hidden
        inner = nnx.initializers.lecun_normal(batch_axis=0)
        self.gate = nnx.Param(inner(rngs.params(), (experts, width, hidden)))
        self.up = nnx.Param(inner(rngs.params(), (experts, width, hidden)))
        outer = residual_init(config, batch_axis=0)
        self.down = nnx.Param(outer(rngs.params(), (experts, hidden, width)))

    def __call__(
        self, x: Float[Array, "batch experts places width"]
    ) -> Float[Array, "batch experts places width"]:
        gate = jnp.einsum("becd,edh->bech", x, self.gate[...])
        up = jnp.einsum("becd,edh->bech", x, self.up[...])
        return jnp.einsum("bech,ehd->becd", jax.nn.silu(gate) * up, self.down[...])


class Mixture(nnx.Module):
    """A router and its experts."""

    def __init__(self, config: MixtureConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.router = nnx.Linear(config.width, config.experts, use_bias=False, rngs=rngs)
        self.experts = Experts(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch length width"], *, report: bool = False
    ) -> Float[Array, "batch length width"]:
        routing = route(self.router(x), self.config.chosen, self.config.places(x.shape[1]))
        if report:
            measured = {
                "load": routing.load,
                "dropped": routing.dropped,
                "imbalance": routing.imbalance,
            }
            self.sow(nnx.Intermediate, REPORT, measured, lambda _, last: last, lambda: None)
        taken = jnp.einsum("blec,bld->becd", routing.dispatch, x)
        return jnp.einsum("blec,becd->bld", routing.combine, self.experts(taken))


def collect_routing(intermediates: Any) -> dict[str, dict[str, Array]]:
    """Gathers what the mixtures of a model reported, by quantity and the path of the layer."""
    found: dict[str, dict[str, Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
        layer, _, rest = jax.tree_util.keystr(path, simple=True, separator="/").partition(REPORT)
        found.setdefault(rest.split("/")[-1], {})[layer.strip("/")] = leaf
    return found
