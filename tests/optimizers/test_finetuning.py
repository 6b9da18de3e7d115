"""The page on fine-tuning: its blocks run, and its claims hold."""

import re
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import muon_jax

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "finetuning.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def names():
    """Returns the names that each block defines, copied because later blocks change the model."""
    scope: dict[str, Any] = {}
    left = []
    for block in BLOCKS:
        exec(block, scope)
        left.append(dict(scope))
    return left


WHOLE, SWITCHED, FROZEN, LORA, DICTIONARY = range(5)


def first_step(tx, params):
    gradients = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    return jax.jit(tx.update)(gradients, tx.init(params), params)[0]


def test_the_page_has_these_blocks(names):
    assert len(names) == DICTIONARY + 1


def test_factors_scale_embedding_layers_and_head(names):
    explained = muon_jax.explain(names[WHOLE]["params"], names[WHOLE]["tx"])
    found = {leaf.path: leaf.learning_rate_multiplier for leaf in explained.leaves}
    assert found["embed/embedding"] == 0.1
    assert found["blocks/0/kernel"] == pytest.approx(0.512)
    assert found["blocks/2/kernel"] == 0.8
    assert found["head/kernel"] == 10


@pytest.mark.slow
def test_the_average_goes_on_from_the_first_moment_of_adamw():
    """Switches as the page does, from a state that is not zero."""
    scope: dict[str, Any] = {}
    exec(BLOCKS[WHOLE], scope)
    adamw, params = optax.adamw(1e-5), scope["params"]
    gradients = jax.tree.map(jnp.cos, params)
    _, restored = adamw.update(gradients, adamw.init(params), params)
    made = "optax.adamw(1e-5).init(params)"
    assert made in BLOCKS[SWITCHED]
    scope["restored"] = restored
    exec(BLOCKS[SWITCHED].replace(made, "restored"), scope)
    state = scope["state"]
    tx = muon_jax.muon(1e-5)
    tx.update(gradients, state, params)
    momentum = state.inner_states["muon"].inner_state[0].mu
    for index in range(3):
        kernel = momentum["blocks"][index]["kernel"].get_value()
        moment = restored[0].mu["blocks"][index]["kernel"].get_value()
        weight = 1.0  # both averages give the one gradient so far the weight 1 - 0.9
        np.testing.assert_allclose(kernel, weight * moment, rtol=1e-6)
    counts = [leaf for leaf in jax.tree.leaves(state) if not leaf.ndim]
    assert [int(count) for count in counts] == [1, 1]


def test_what_is_frozen_stays_and_has_no_state(names):
    tx, params = names[FROZEN]["tx"], names[WHOLE]["params"]
    updates = first_step(tx, params)
    assert not updates["embed"]["embedding"].get_value().any()
    assert not updates["blocks"][0]["kernel"].get_value().any()
    assert updates["blocks"][1]["kernel"].get_value().all()
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(each.init(params)))
        for each in (tx, muon_jax.muon(1e-5))
    ]
    assert sizes[0] < sizes[1]


def test_gradients_of_what_is_frozen_are_not_computed():
    params = [jnp.ones((64, 64)) for _ in range(4)]

    def flops(tx):
        def step(params, state, inputs):
            def loss(params):
                hidden = inputs
                for kernel in params:
                    hidden = jnp.tanh(hidden @ kernel)
                return hidden.sum()

            return tx.update(jax.grad(loss)(params), state, params)

        lowered = jax.jit(step).lower(params, tx.init(params), jnp.ones((64, 64)))
        cost = lowered.compile().cost_analysis()
        assert cost is not None
        return cost["flops"]

    rest = {"rules": [muon_jax.Rule("*", "rest")]}
    trained = muon_jax.muon(0.1, **rest, transforms={"rest": optax.sgd(0.1)})
    frozen = muon_jax.muon(0.1, **rest, transforms={"rest": optax.set_to_zero()})
    assert flops(frozen) < 0.01 * flops(trained)


def test_lora_trains_its_factors_alone(names):
    before = names[LORA]
    assert before["losses"][-1] < before["losses"][0]
    fresh = before["Model"](3, nnx.Rngs(0))
    for block, untouched in zip(before["model"].blocks, fresh.blocks, strict=True):
        np.testing.assert_array_equal(block.base_module.kernel[...], untouched.kernel[...])
        assert np.asarray(block.lora_b[...]).any()
    np.testing.assert_array_equal(before["model"].embed.embedding[...], fresh.embed.embedding[...])


def test_the_base_stays_where_a_rule_freezes_it(names):
    params, tx = names[DICTIONARY]["params"], names[DICTIONARY]["tx"]
    updates = first_step(tx, params)["query"]
    assert not updates["kernel"].any()
    ratio = np.linalg.norm(updates["lora_b"]) / np.linalg.norm(updates["lora_a"])
    np.testing.assert_allclose(
        ratio, 8, rtol=0.02
    )  # singular values within the band of Newton-Schulz


def test_the_first_step_of_the_first_factor_is_zero(names):
    params, tx = names[DICTIONARY]["params"], names[DICTIONARY]["tx"]

    def loss(params):
        low_rank = params["query"]["lora_a"] @ params["query"]["lora_b"]
        return jnp.sum(jnp.sin(params["query"]["kernel"] + low_rank) ** 2)

    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    assert not updates["query"]["lora_a"].any()
    assert updates["query"]["lora_b"].any()


# Factors in other libraries' trees


class Adapter(eqx.Module):
    weight: jax.Array
    lora_a: jax.Array
    lora_b: jax.Array


def factors(a, b, **rest):
    return {"lora_a": jnp.ones(a), "lora_b": jnp.ones(b), **rest}


TREES = {
    "NNX": (
        nnx.state(nnx.LoRALinear(8, 16, lora_rank=2, rngs=nnx.Rngs(0)), nnx.LoRAParam),
        ["0|1", "0|1"],
    ),
    "Linen": ({"up_proj": factors((8, 2), (2, 16), kernel=jnp.ones((8, 16)))}, ["0|1"] * 3),
    "Linen, scanned": (
        {"up_proj": factors((3, 8, 2), (3, 2, 16), kernel=jnp.ones((3, 8, 16)))},
        ["1|2"] * 3,
    ),
    "Equinox": (
        Adapter(jnp.ones((16, 8)), jnp.ones((8, 2)), jnp.ones((2, 16))),
        ["1|0", "0|1", "0|1"],
    ),
    "heads": (factors((8, 2), (2, 4, 4)), ["0|1", "0|1,2"]),
}


@pytest.mark.parametrize(("params", "views"), TREES.values(), ids=TREES)
def test_factors_are_matrices_in_any_tree(params, views):
    axes = [leaf.axes for leaf in muon_jax.explain(params, muon_jax.muon(1.0)).leaves if leaf.axes]
    assert [
        "|".join(",".join(map(str, group)) for group in (each.rows, each.cols)) for each in axes
    ] == views


def test_stacked_factors_by_themselves_are_ambiguous():
    """No sibling distinguishes three layers of rank two from one layer with more axes."""
    params = nnx.state(
        nnx.vmap(lambda rngs: nnx.LoRALinear(8, 16, lora_rank=2, rngs=rngs))(nnx.Rngs(0).split(3)),
        nnx.LoRAParam,
    )
    with pytest.raises(ValueError, match=r"lora_a(.|\n)*Rule\("):
        muon_jax.explain(params, muon_jax.muon(1.0))
    factors_of_layers = muon_jax.Rule("*/lora_*", muon_jax.MatrixAxes(1, 2))
    explained = muon_jax.explain(params, muon_jax.muon(1.0, rules=[factors_of_layers]))
    assert [leaf.matrices for leaf in explained.leaves] == [((3, 8, 2),), ((3, 2, 16),)]
