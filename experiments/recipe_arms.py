"""Optimizers in the comparison of recipes; learning rates and decays may be traced."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

import muon_jax
from experiments.recipe_tasks import HEAD_DIM
from experiments.variants import (
    SoapInBfloat16,
    decay_matrices,
    look_ahead,
    normalize_outputs,
)
from muon_jax.transforms._scale import outputs
from muon_jax.trees._paths import map_named
from trainer.optimizers import MUON_MOMENTUM
from trainer.optimizers import _optax_dimension_numbers as dimension_numbers

B2 = 0.95

Schedule = Callable[[Any], Float[Array, ""]]


class Numbers(NamedTuple):
    """Peak learning rate, weight decay, and factors on both for inputs, heads and vectors."""

    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    input: Float[Array, ""]
    head: Float[Array, ""]
    vector: Float[Array, ""]
    input_decay: Float[Array, ""]
    head_decay: Float[Array, ""]
    vector_decay: Float[Array, ""]


PRECONDITIONERS: dict[str, muon_jax.SecondMoment | muon_jax.Soap | None] = {
    "none": None,
    "factored": muon_jax.SecondMoment(factored=True),
    "second_moment": muon_jax.SecondMoment(),
    "second_moment_0.9": muon_jax.SecondMoment(decay=0.9),
    "second_moment_0.99": muon_jax.SecondMoment(decay=0.99),
    "soap": muon_jax.Soap(sides="both"),
    "soap_bfloat16": SoapInBfloat16(),
    "soap_short": muon_jax.Soap(),
}


def make(
    optimizer: str, precondition: str, numbers: Numbers, schedule: Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer of this name in `ARMS`; only those of muon_jax take a precondition."""

    def rate(count: Any) -> Float[Array, ""]:
        return numbers.learning_rate * schedule(count)

    chosen = PRECONDITIONERS[precondition]
    return ARMS[optimizer](numbers, rate, **({} if chosen is None else {"precondition": chosen}))


def _muon(
    numbers: Numbers, rate: Schedule, *, momentum: float = MUON_MOMENTUM, **options: Any
) -> optax.GradientTransformation:
    return muon_jax.muon(
        rate,
        weight_decay=numbers.weight_decay,
        momentum=momentum,
        fallback=_adam_by_kind(numbers, rate, nesterov=True),
        **options,
    )


def _muon_default(numbers: Numbers, rate: Schedule, **options: Any) -> optax.GradientTransformation:
    del numbers
    return muon_jax.muon(rate, **options)


def _optax(numbers: Numbers, rate: Schedule, **options: Any) -> optax.GradientTransformation:
    return optax.contrib.muon(
        rate,
        weight_decay=numbers.weight_decay,
        adam_b2=B2,
        adam_weight_decay=numbers.weight_decay * numbers.input_decay,
        adam_learning_rate=lambda count: numbers.input * rate(count),
        muon_weight_dimension_numbers=dimension_numbers,
        **options,
    )


def _adamw(numbers: Numbers, rate: Schedule) -> optax.GradientTransformation:
    return _adam_by_kind(numbers, rate, nesterov=False)


def _with_variants(
    numbers: Numbers,
    rate: Schedule,
    *,
    normalized: bool = False,
    cautious: bool = False,
    tied: bool = False,
    **options: Any,
) -> optax.GradientTransformation:
    """Returns Muon followed by the chosen variants; weight decay is applied after them.

    Args:
      normalized: whether to apply `normalize_outputs` to the updates.
      cautious: whether to decay only entries that the update moves towards zero.
      tied: whether the weight decay follows the learning rate schedule too. A step then decays
        weights in proportion to the square of the schedule.
    """

    def decay(count: Any) -> Float[Array, ""]:
        tie = rate(count) / numbers.learning_rate if tied else 1.0
        return rate(count) * numbers.weight_decay * tie

    def is_matrix(tree: Any) -> Any:
        return jax.tree.map(lambda kind: kind == "matrix", _kinds(tree))

    return optax.chain(
        _muon(numbers._replace(weight_decay=0.0), rate, **options),
        normalize_outputs(is_matrix) if normalized else optax.identity(),
        decay_matrices(decay, is_matrix, cautious=cautious),
    )


def _quantized(
    dtype: Any, numbers: Numbers, rate: Schedule, **options: Any
) -> optax.GradientTransformation:
    return muon_jax.quantize_state(_muon(numbers, rate, scale=outputs, **options), dtype)


def _ahead(
    decay: float, steps: float, numbers: Numbers, rate: Schedule, **options: Any
) -> optax.GradientTransformation:
    return look_ahead(_muon(numbers, rate, momentum=0.9, **_HEADS, **options), decay, steps)


def _by_head(rows: int, cols: int) -> float:
    """Returns the scale `outputs`; a single head gets the scale of its whole projection."""
    return outputs(rows, rows if cols == HEAD_DIM else cols)


_WHOLE = muon_jax.MatrixAxes(0, (1, 2))


def _heads(names: str, whole: muon_jax.MatrixAxes | None = None) -> muon_jax.Rule:
    return muon_jax.Rule(f"*/{{{names}}}/kernel", muon_jax.MatrixAxes(0, 2, whole=whole))


_QUERY_KEY_VALUE = [_heads("query,key,value")]
_AND_OUT = [*_QUERY_KEY_VALUE, muon_jax.Rule("*/out/kernel", muon_jax.MatrixAxes(1, 2))]
_OUTPUTS = functools.partial(_muon, scale=outputs)
_HEADS: dict[str, Any] = {"scale": _by_head, "rules": _QUERY_KEY_VALUE}
_APART = functools.partial(_muon, **_HEADS)
_VARIANT = functools.partial(_with_variants, momentum=0.9, **_HEADS)

ARMS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "muon": functools.partial(_muon, scale="match_rms"),
    "muon-outputs": _OUTPUTS,
    **{
        f"muon-outputs-momentum-{momentum}": functools.partial(_OUTPUTS, momentum=momentum)
        for momentum in (0.8, 0.85, 0.9, 0.975)
    },
    "muon-outputs-heads": _APART,
    "muon-outputs-heads-momentum-0.9": functools.partial(_APART, momentum=0.9),
    "muon-outputs-heads-out": functools.partial(_APART, rules=_AND_OUT),
    "muon-outputs-heads-small": functools.partial(_APART, scale=outputs),
    "muon-outputs-qk-momentum-0.9": functools.partial(
        _APART, momentum=0.9, rules=[_heads("query,key")]
    ),
    "muon-outputs-int8": functools.partial(_quantized, "int8"),
    "muon-outputs-bfloat16": functools.partial(_quantized, "bfloat16"),
    "muon-outputs-normalized": functools.partial(_with_variants, scale=outputs, normalized=True),
    "muon-outputs-cautious": functools.partial(_with_variants, scale=outputs, cautious=True),
    "muon-heads-whole": functools.partial(
        _muon, momentum=0.9, scale=_by_head, rules=[_heads("query,key,value", _WHOLE)]
    ),
    "muon-heads-normalized": functools.partial(_VARIANT, normalized=True),
    "muon-heads-tied-decay": functools.partial(_VARIANT, tied=True),
    "muon-heads-cautious": functools.partial(_VARIANT, cautious=True),
    **{
        f"muon-heads-ahead-{decay}-{steps}": functools.partial(_ahead, decay, steps)
        for decay, steps in ((0.9, 2.0), (0.98, 5.0), (0.9, 5.0))
    },
    "muon-spectral": functools.partial(_muon, scale="spectral", momentum=0.9),
    "muon-match_rms-momentum-0.9": functools.partial(_muon, scale="match_rms", momentum=0.9),
    "muon-keller": functools.partial(_muon, scale="keller"),
    "muon-default": _muon_default,
    "optax": lambda numbers, rate: _optax(numbers, rate, consistent_rms=0.2),
    "optax-own-scale": _optax,
    "optax-own-scale-momentum-0.9": functools.partial(_optax, beta=0.9),
    "adamw": _adamw,
}
"""Optimizers by name.

Names with `outputs` use the scale `outputs`. Muon orthogonalises the heads of a projection together
unless the name contains `heads` or `qk`. Arms that begin with `muon-heads` use the scale, heads and
momentum of the default. In `muon-heads-whole`, preconditioners see whole projections, as in the
default; in the other `muon-heads` arms they see each head alone.
"""


def _adam_by_kind(
    numbers: Numbers, rate: Schedule, *, nesterov: bool
) -> optax.GradientTransformation:
    """Returns AdamW with a rate and a decay for each kind of parameter."""
    adam = optax.scale_by_adam(b2=B2, nesterov=nesterov)
    rates = {"input": numbers.input, "head": numbers.head, "vector": numbers.vector, "matrix": 1.0}
    decays = {
        "input": numbers.input_decay,
        "head": numbers.head_decay,
        "vector": numbers.vector_decay,
        "matrix": 1.0,
    }

    def stepped(kind: str, update: Array, leaf: Array) -> Array:
        return rates[kind] * (update + numbers.weight_decay * decays[kind] * leaf)

    by_kind = optax.stateless(
        lambda updates, params: jax.tree.map(stepped, _kinds(params), updates, params)
    )
    return optax.chain(adam, by_kind, optax.scale_by_learning_rate(rate))


def _kinds(params: Any) -> Any:
    """Names the kind of every parameter: matrix (Muon's), vector, head or input."""
    return map_named(_kind, params)


def _kind(path: str, leaf: Array) -> str:
    if leaf.ndim < 2:
        return "vector"
    if "head" in path:
        return "head"
    return "input" if "embed" in path or "stem" in path else "matrix"
