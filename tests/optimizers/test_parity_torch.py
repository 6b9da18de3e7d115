"""Recipes with sources in PyTorch, over the run of `reference_runs`.

There are three comparisons: PyTorch's results (tests/golden) with a NumPy version of the source
that rounds to bfloat16; the NumPy version without rounding with the recipe in float32; and
PyTorch's results with the recipe itself.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference_runs as run
from covering import covering
from matrices import gaussian, singular_values
from recipe_runs import from_jax, to_jax, trained

from muon_jax import recipes

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "torch.npz")
START = run.weights()

# Rounding in float32, 2⁻²⁴, times the slope of the quintics at small singular values. The distance
# of two final weights is relative to the distance trained, so errors of steps do not add up.
FLOAT32 = 2**-24 * run.QUINTIC[0] ** 5

# PyTorch sums in another order than NumPy, which sometimes changes a rounding to bfloat16.
# Measured: at most 1.1e-3; all rounding together makes 2e-3 to 9e-3.
TURNED_ROUNDINGS = 2e-3


def keller_factor(outputs: int, inputs: int) -> float:
    return math.sqrt(max(1, outputs / inputs))


def rms_factor(outputs: int, inputs: int) -> float:
    return 0.2 * math.sqrt(max(outputs, inputs))


class Source(NamedTuple):
    """An optimizer of PyTorch, and its recipe."""

    recipe: Any  # of the dtype of products
    factor: Any  # from (outputs, inputs)
    weights: tuple[str, ...] = run.MATRICES
    options: Mapping[str, Any] = MappingProxyType({})  # of `run.muon`
    fused: bool = True  # as in `run.newton_schulz`

    def expected(self, name: str, rounded: run.Rounding = run.exact, **options: Any) -> run.Array:
        shape = run.SHAPES[name]
        outputs, inputs = shape[1:] if name == "stack" else (shape[0], math.prod(shape[1:]))
        return run.muon(
            START[name],
            run.gradients_of(name),
            factor=self.factor(outputs, inputs),
            polar=functools.partial(run.newton_schulz, rounded=rounded, fused=self.fused),
            **{**self.options, **options},
        )


TORCH = functools.partial(recipes.torch, run.RATE, weight_decay=run.DECAY)
SOURCES = {
    "torch_original": Source(TORCH, keller_factor),
    "torch_match_rms": Source(functools.partial(TORCH, adjust_lr_fn="match_rms_adamw"), rms_factor),
    "torch_plain": Source(
        functools.partial(TORCH, nesterov=False), keller_factor, options={"nesterov": False}
    ),
    "keller": Source(
        functools.partial(
            recipes.keller,
            run.RATE,
            weight_decay=run.DECAY,
            adam_learning_rate=run.ADAM_RATE,
            adam_weight_decay=run.DECAY,
        ),
        keller_factor,
        (*run.MATRICES, "filters", "stack"),
        fused=False,
    ),
    "moonlight": Source(
        functools.partial(recipes.moonlight, run.RATE, weight_decay=run.DECAY),
        rms_factor,
        options={"heavy_ball": True},
        fused=False,
    ),
}
EVERY_RULE = ("torch_original", "keller", "moonlight")
each_source = pytest.mark.parametrize("source", SOURCES)
WEIGHTS = [(key, name) for key, source in SOURCES.items() for name in source.weights]
each_weight = pytest.mark.parametrize(("source", "name"), WEIGHTS)
each_weight_of_a_run = pytest.mark.parametrize(
    ("source", "name"), covering(WEIGHTS, fast=[each for each in WEIGHTS if each[0] in EVERY_RULE])
)


@functools.cache
def ends(source: str, dtype: str) -> dict[str, np.ndarray]:
    names = (*SOURCES[source].weights, "vector")
    params = to_jax({name: START[name] for name in names})
    return from_jax(trained(SOURCES[source].recipe(dtype=dtype), params)[0])


@functools.cache
def expected(source: str, name: str, rounded: run.Rounding = run.exact) -> run.Array:
    return SOURCES[source].expected(name, rounded)


@each_weight
def test_the_account_of_the_source_is_what_pytorch_computes(source, name):
    found = expected(source, name, run.to_bfloat16)
    assert run.distance(found, GOLDEN[f"{source}/{name}"], START[name]) < TURNED_ROUNDINGS


@each_weight_of_a_run
def test_in_float32_the_recipe_is_the_source_without_its_rounding(source, name):
    found = ends(source, "float32")[name]
    assert run.distance(found, expected(source, name), START[name]) < FLOAT32


@each_weight_of_a_run
def test_as_it_stands_the_recipe_is_the_source_within_its_rounding(source, name):
    """Only the source rounds small matrices, because muon_jax keeps them in float32.

    Both round "large": the source every result, muon_jax both operands of every product. The bound
    allows muon_jax twice the source's error (measured: 1.7 times), and adds the two.
    """
    exact, golden = expected(source, name), GOLDEN[f"{source}/{name}"]
    rounding = run.distance(golden, exact, START[name])
    limit = 3 * rounding if name == "large" else 1.01 * rounding
    assert run.distance(ends(source, "bfloat16")[name], golden, START[name]) < limit


@each_source
@pytest.mark.parametrize(
    "change",
    [{"nesterov": None}, {"momentum": 0.9}, {"decay": 0.05}, {"rate": 1.05 * run.RATE}],
    ids=lambda change: next(iter(change)),
)
def test_the_limits_would_notice_another_method(source, change):
    if "nesterov" in change:
        change = {"nesterov": not SOURCES[source].options.get("nesterov", True)}
    for name in ("wide", "large"):
        other = SOURCES[source].expected(name, **change)
        golden = GOLDEN[f"{source}/{name}"]
        rounding = run.distance(golden, expected(source, name), START[name])
        assert run.distance(other, golden, START[name]) > 3 * rounding


@pytest.mark.parametrize(
    ("source", "options"),
    [("keller", {"rate": run.ADAM_RATE, "eps": 1e-10}), ("moonlight", {"rate": run.RATE})],
)
def test_vectors_go_to_the_adam_of_the_source(source, options):
    golden = GOLDEN[f"{source}/vector"]
    account = run.adam(START["vector"], run.gradients_of("vector"), **options)
    for found in (account, ends(source, "float32")["vector"]):
        assert run.distance(found, golden, START["vector"]) < FLOAT32


def test_the_one_difference_of_keller_is_the_scale_of_filters():
    """The source divides height by width, muon_jax outputs by inputs × height × width.

    Both factors are 1 for square filters with at most that many outputs, as in the run above.
    """
    few, many = (10, 4, 3, 3), (64, 3, 3, 3)
    assert keller_factor(few[0], math.prod(few[1:])) == keller_factor(few[2], few[3]) == 1
    params = to_jax({"filters": gaussian(*many)})
    tx = recipes.keller(1.0, dtype="float32")
    updates, _ = tx.update(params, tx.init(params), params)
    largest = singular_values(np.reshape(updates["conv"]["kernel"], (27, 64))).max()
    assert 0.6 < largest / math.sqrt(64 / 27) < 1.2
