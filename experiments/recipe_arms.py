"""Optimizers of the comparison of recipes, with rates and decays that may be traced."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float

import muon_jax
from experiments.variants import cautious_decay, normalize_outputs
from muon_jax.trees._paths import map_named
from trainer.optimizers import _optax_dimension_numbers as dimension_numbers

B2 = 0.95

Schedule = Callable[[Any], Float[Array, ""]]


class Numbers(NamedTuple):
    """Peak, decay, and the factors on both for what Muon leaves to AdamW."""

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
    "second_moment": muon_jax.SecondMoment(),
    "soap": muon_jax.Soap(sides="both"),
    "soap_short": muon_jax.Soap(),
}


def make(
    optimizer: str, precondition: str, numbers: Numbers, schedule: Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer that `ARMS` calls so; only arms of `_muon` take a precondition."""

    def rate(count: Any) -> Float[Array, ""]:
        return numbers.learning_rate * schedule(count)

    chosen = PRECONDITIONERS[precondition]
    return ARMS[optimizer](numbers, rate, **({} if chosen is None else {"precondition": chosen}))


def _muon(numbers: Numbers, rate: Schedule, **options: Any) -> optax.GradientTransformation:
    return muon_jax.muon(
        rate,
        weight_decay=numbers.weight_decay,
        fallback=_adam_by_kind(numbers, rate, nesterov=True),
        **options,
    )


def _muon_default(numbers: Numbers, rate: Schedule) -> optax.GradientTransformation:
    del numbers
    return muon_jax.muon(rate)


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
    **options: Any,
) -> optax.GradientTransformation:
    """Returns Muon followed by variants; its decay comes last, as the variants want it."""

    def is_matrix(tree: Any) -> Any:
        return jax.tree.map(lambda kind: kind == "matrix", _kinds(tree))

    return optax.chain(
        _muon(numbers._replace(weight_decay=0.0), rate, **options),
        normalize_outputs(is_matrix) if normalized else optax.identity(),
        cautious_decay(rate, numbers.weight_decay, is_matrix, cautious=cautious),
    )


ARMS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "muon": _muon,
    "muon-outputs": functools.partial(_muon, scale="outputs"),
    "muon-outputs-normalized": functools.partial(_with_variants, scale="outputs", normalized=True),
    "muon-outputs-cautious": functools.partial(_with_variants, scale="outputs", cautious=True),
    "muon-keller": functools.partial(_muon, scale="keller"),
    "muon-default": _muon_default,
    "optax": lambda numbers, rate: _optax(numbers, rate, consistent_rms=0.2),
    "optax-own-scale": _optax,
    "adamw": _adamw,
}


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
