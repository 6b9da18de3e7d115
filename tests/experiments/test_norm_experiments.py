"""The experiments on norms, in tiny settings: Schatten norms, and a norm for each role."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import gaussian, singular_values

from experiments import one_framework, schatten, tilt
from trainer.optimizers import OptimizerConfig

TINY = {
    "steps": 2,
    "seeds": (0,),
    "batch_size": 2,
    "width": 16,
    "layers": 1,
    "evaluations": 1,
    "workers": 0,
}
WIDTH, TOKENS, UNSEEN = 6, 20, 3


def columns(table):
    return [len(row.split("|")) for row in table.splitlines() if row]


@pytest.mark.slow
def test_norms_are_measured_once_and_stand_in_both_tables(texts, tmp_path):
    saved = tmp_path / "saved.jsonl"
    plan = schatten.Plan(norms=(math.inf,), rates=(1e-2,), data=str(texts), results=saved, **TINY)
    schatten.run(plan)
    written = saved.read_text()
    best, swept = schatten.report(plan).split("\n\n")
    assert best.splitlines()[-1].startswith("| ∞ | 0 | 0.01 | ")
    assert len(set(columns(best))) == len(set(columns(swept))) == 1
    schatten.draw(plan).savefig(tmp_path / "norms.png")
    (found,) = plan.trials.saved().values()
    assert 0 < found["entropy"] < 1
    assert saved.read_text() == written


@pytest.mark.slow
def test_arms_are_measured_once_and_stand_in_both_tables(texts, tmp_path):
    saved = tmp_path / "saved.jsonl"
    rates = {"fallback_rates": (1e-2,), "matrix_rates": (1e-2,)}
    plan = one_framework.Plan(arms=("norms",), **rates, data=str(texts), results=saved, **TINY)
    one_framework.run(plan)
    written = saved.read_text()
    best, swept = one_framework.report(plan).split("\n\n")
    assert best.splitlines()[-1].startswith("| a norm for each role | 0.01 | 0.01 | ")
    assert len(set(columns(best))) == len(set(columns(swept))) == 1
    one_framework.draw(plan).savefig(tmp_path / "arms.png")
    assert saved.read_text() == written


@functools.cache
def gradients():
    shapes = {
        "embed": {"embedding": (TOKENS, WIDTH)},
        "blocks": {"mlp": {"up": {"kernel": (WIDTH, 2 * WIDTH)}}},
        "norm": {"scale": (WIDTH,)},
        "head": {"kernel": (WIDTH, TOKENS)},
    }
    tree = jax.tree.map(lambda shape: gaussian(*shape), shapes, is_leaf=lambda x: type(x) is tuple)
    tree["embed"]["embedding"][UNSEEN] = 0
    return jax.tree.map(jnp.float32, tree)


@functools.cache
def first_step(arm):
    """Returns the first step without decay, at 1 for Muon's parameters and 0.5 for the rest."""
    rates = {"learning_rate": 1.0, "fallback_learning_rate": 0.5, "weight_decay": 0.0}
    config = OptimizerConfig(**rates, warmup_steps=0, schedule="constant", orthogonalizer="svd")
    tx = one_framework.arm_optimizer(arm, config, steps=1)
    steps, _ = jax.jit(tx.update)(gradients(), tx.init(gradients()), gradients())
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), steps)


def test_every_role_steps_by_the_rate_in_its_own_norm():
    steps = first_step("norms")
    rows = np.sqrt(np.mean(np.square(steps["embed"]["embedding"]), axis=1))
    np.testing.assert_allclose(rows, np.where(np.arange(TOKENS) == UNSEEN, 0, 0.5), rtol=1e-5)
    gains = -0.5 * np.sign(gradients()["norm"]["scale"])
    np.testing.assert_allclose(steps["norm"]["scale"], gains, rtol=1e-5)
    head = singular_values(steps["head"]["kernel"]) / np.sqrt(TOKENS / WIDTH)
    np.testing.assert_allclose(head, 0.5, rtol=1e-5)


@pytest.mark.parametrize("arm", one_framework.ARMS)
def test_matrices_take_the_same_step_in_every_arm(arm):
    def matrix(steps):
        return steps["blocks"]["mlp"]["up"]["kernel"]

    step = matrix(first_step(arm))
    np.testing.assert_allclose(step, matrix(first_step("adamw")), rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(step))), 0.2, rtol=1e-5)


def test_momentum_over_its_rms_has_the_rate_for_its_rms():
    steps = first_step("momentum-rms")
    for leaf in (steps["embed"]["embedding"], steps["norm"]["scale"], steps["head"]["kernel"]):
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(leaf))), 0.5, rtol=1e-5)


def test_only_adamw_keeps_a_second_moment():
    matrix, every = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (gradients()["blocks"], gradients())
    )
    sizes = {arm: one_framework.copies(arm, gradients()) for arm in one_framework.ARMS}
    assert sizes["momentum-rms"] == pytest.approx(1, abs=0.05)
    assert sizes["norms"] == pytest.approx(1, abs=0.05)
    assert sizes["adamw"] == pytest.approx(2 - matrix / every, abs=0.05)


@pytest.mark.slow
def test_tilts_are_measured_once_and_stand_in_the_table(texts, tmp_path):
    saved = tmp_path / "saved.jsonl"
    tiny = {name: value for name, value in TINY.items() if name != "evaluations"}
    plan = tilt.Plan(tilts=((1.0, 1.0), (0.5, 1.5)), data=str(texts), results=saved, **tiny)
    tilt.run(plan)
    written = saved.read_text()
    table = tilt.report(plan)
    assert table.splitlines()[-1].startswith("| 0.5 | 1.5 | ")
    assert len(set(columns(table))) == 1
    assert saved.read_text() == written


@pytest.mark.parametrize("shape", [(6, 6), (6, 14)])
def test_a_tilt_keeps_singular_vectors_and_sets_singular_values_by_rank(shape):
    matrix = gaussian(*shape)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    tilted = tilt.Tilted(0.6, 1.4)(1e-3 * matrix[None].astype(np.float32))[0]
    np.testing.assert_allclose(
        left.T @ tilted @ right.T, np.diag(np.linspace(0.6, 1.4, 6)), atol=1e-4
    )


def test_a_tilt_of_zero_is_zero_and_of_low_rank_finite():
    matrices = jnp.stack([jnp.zeros((6, 8)), jnp.ones((6, 8))])
    zero, low_rank = tilt.Tilted(0.6, 1.4)(matrices)
    assert not zero.any()
    rounding = 1.4 * np.finfo(np.float32).eps / tilt._SMALLEST  # parameters without a direction
    np.testing.assert_allclose(np.linalg.norm(low_rank, 2), 0.6, atol=rounding)
