"""The mixture of experts: the laws of routing, the layer, and whole runs."""

import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import muon_jax
from trainer.errors import UsageError
from trainer.language import SampleConfig, TextConfig
from trainer.models.decoder import Decoder, SwiGLU
from trainer.models.mixture import Mixture, MixtureConfig, collect_routing, route
from trainer.optimizers import OptimizerConfig, make_optimizer
from trainer.programs import moe
from trainer.records.metrics import read_layers
from trainer.training import RunConfig

TINY = MixtureConfig(width=16, layers=1, heads=2, experts=4)
LOGITS = jax.random.normal(jax.random.key(0), (3, 10, 6))
EXPERTS = LOGITS.shape[-1]
ROUTE = jax.jit(route, static_argnums=(1, 2))

# Routing


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [1, 2, EXPERTS])
def test_every_token_goes_to_its_best_experts_with_weights_that_sum_to_one(chosen):
    routing = ROUTE(LOGITS, chosen, 10)
    weights = np.asarray(routing.combine.sum(axis=-1))
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    best = np.argsort(LOGITS, axis=-1)[..., -chosen:]
    for token in np.ndindex(3, 10):
        assert set(np.flatnonzero(weights[token])) == set(best[token])
    odds = np.where(weights > 0, np.exp(LOGITS), 0)
    np.testing.assert_allclose(weights, odds / odds.sum(axis=-1, keepdims=True), rtol=1e-5)
    assert routing.dropped == 0


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 3])
def test_a_place_holds_one_token_and_the_first_tokens_have_it(places):
    routing, unbounded = ROUTE(LOGITS, 2, places), ROUTE(LOGITS, 2, 10)
    held = np.asarray(routing.dispatch)
    assert held.sum(axis=1).max() == 1
    wanted = np.asarray(unbounded.dispatch).sum(axis=-1)
    first = wanted * (np.cumsum(wanted, axis=1) <= places)
    np.testing.assert_array_equal(held.sum(axis=-1), first)
    assert float(routing.dropped) == pytest.approx(1 - first.sum() / wanted.sum())
    np.testing.assert_array_equal(routing.load, unbounded.load)


@pytest.mark.slow
def test_no_token_depends_on_a_later_one():
    later = LOGITS.at[:, 6:].set(-LOGITS[:, 6:])
    one, other = ROUTE(LOGITS, 2, 2).combine, ROUTE(later, 2, 2).combine
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert (one[:, 6:] != other[:, 6:]).any()


@pytest.mark.slow
def test_the_load_and_its_loss():
    routing = ROUTE(LOGITS, 2, 10)
    counts = (np.asarray(routing.combine) > 0).sum(axis=(0, 1, 3))
    np.testing.assert_allclose(routing.load, counts / counts.sum(), rtol=1e-6)
    assert float(routing.load.sum()) == pytest.approx(1)
    even = ROUTE(1e-4 * jnp.eye(EXPERTS)[None], 1, 10)
    assert float(even.imbalance) == pytest.approx(1)
    crowded = ROUTE(jnp.zeros((1, 5, EXPERTS)).at[..., 2].set(50.0), 1, 10)
    assert float(crowded.imbalance) == pytest.approx(EXPERTS)


# The layer


def layer(kind, config):
    return nnx.jit(lambda: kind(config, rngs=nnx.Rngs(0)))()


@cache
def decoder():
    return nnx.jit(lambda: Decoder(TINY, 50, mlp=Mixture, rngs=nnx.Rngs(0)))()


@nnx.jit
def call(layer, x):
    return layer(x)


@pytest.mark.slow
def test_one_expert_is_the_dense_layer():
    config = MixtureConfig(width=16, heads=2, experts=1, chosen=1)
    mixture, dense = layer(Mixture, config), layer(SwiGLU, config)
    for name in ("gate", "up", "down"):
        getattr(dense, name).kernel[...] = getattr(mixture.experts, name)[0]
    x = jax.random.normal(jax.random.key(1), (2, 8, 16))
    np.testing.assert_allclose(call(mixture, x), call(dense, x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_layer_is_the_weighted_sum_of_its_experts():
    config = replace(TINY, capacity=4.0)
    mixture = layer(Mixture, config)
    x = np.random.default_rng(0).standard_normal((2, 8, 16), np.float32)
    router = np.asarray(mixture.router.kernel[...])
    weights = np.asarray(ROUTE(x @ router, config.chosen, 8).combine).sum(axis=-1)
    gate, up, down = (
        np.asarray(getattr(mixture.experts, name)[...]) for name in ("gate", "up", "down")
    )
    gated = np.einsum("bld,edh->bleh", x, gate)
    hidden = gated / (1 + np.exp(-gated)) * np.einsum("bld,edh->bleh", x, up)
    expected = np.einsum("ble,bleh,ehd->bld", weights, hidden, down)
    np.testing.assert_allclose(call(mixture, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_token_without_a_place_passes_by():
    mixture = layer(Mixture, replace(TINY, experts=1, chosen=1, capacity=0.5))
    out = np.asarray(call(mixture, jax.random.normal(jax.random.key(1), (2, 8, 16))))
    assert (out[:, :4] != 0).all()
    assert (out[:, 4:] == 0).all()


@pytest.mark.slow
def test_a_layer_reports_by_its_path_and_only_when_asked():
    model = decoder()
    tokens = jnp.arange(20).reshape(2, 10)
    forward = nnx.capture(lambda model, x: model(x, mlp_options={"report": True}), nnx.Intermediate)
    logits, reported = nnx.jit(forward)(model, tokens)
    routing = collect_routing(reported)
    assert set(routing) == {"load", "dropped", "imbalance"}
    for layers in routing.values():
        assert list(layers) == ["blocks/0/mlp"]
    np.testing.assert_array_equal(logits, call(model, tokens))


@pytest.mark.slow
def test_the_penalty_has_a_gradient_and_no_value():
    model = nnx.clone(decoder())
    model.head.kernel[...] = jax.random.normal(jax.random.key(1), (16, 50))
    windows = jax.random.randint(jax.random.key(0), (2, 9), 0, 50)

    @nnx.jit
    def measure(model, weight):
        def loss(model):
            return moe.balanced_loss(weight)(model, windows)[0]

        value, gradient = nnx.value_and_grad(loss)(model)
        return value, gradient["blocks"][0]["mlp"]["router"]["kernel"]

    (alone, without), (pulled, with_penalty) = measure(model, 0.0), measure(model, 0.5)
    assert alone == pulled
    assert float(jnp.abs(with_penalty[...] - without[...]).max()) > 1e-3


# Muon's rules


def test_the_rules_see_a_matrix_in_every_expert_and_leave_the_router():
    leaves = {leaf.path: leaf for leaf in moe.explain(TINY).leaves}
    for name in ("gate", "up", "down"):
        leaf = leaves[f"blocks/0/mlp/experts/{name}"]
        assert (leaf.label, leaf.rule, leaf.axes.rows, leaf.axes.cols) == (
            ("muon", "experts", (1,), (2,))
        )
    router = leaves["blocks/0/mlp/router/kernel"]
    assert (router.label, router.rule) == ("adamw", "router")


@pytest.mark.slow
def test_optax_muon_orthogonalises_every_expert():
    shapes = {"experts": {"up": (4, 16, 24), "down": (4, 24, 16)}, "router": {"kernel": (16, 4)}}
    draw = np.random.default_rng(0)
    params = {
        "blocks": jax.tree.map(
            lambda shape: jnp.asarray(draw.normal(size=shape), jnp.float32),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
    }
    config = OptimizerConfig("optax-muon", weight_decay=0.0, warmup_steps=0)
    tx = make_optimizer(config, 10)
    updates = jax.jit(lambda params: tx.update(params, tx.init(params), params)[0])(params)
    for update in updates["blocks"]["experts"].values():
        values = np.linalg.svd(update, compute_uv=False)
        assert values.max() < 1.8 * values.min()
    router = np.abs(updates["blocks"]["router"]["kernel"])
    np.testing.assert_allclose(router, router.max(), rtol=1e-3)  # Adam's first step


@pytest.mark.slow
def test_an_expert_that_nothing_reaches_keeps_its_direction():
    """The polar factor ignores the size of the average, as the page says."""
    tx = muon_jax.scale_by_muon(axes=muon_jax.MatrixAxes(rows=1, cols=2))
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6)), jnp.float32)
    first, state = tx.update(gradient, tx.init(gradient))
    step, update = jax.jit(tx.update), first
    for _ in range(20):
        update, state = step(gradient.at[1].set(0.0), state)
    np.testing.assert_allclose(update[1], first[1], rtol=1e-3, atol=1e-4)


# Runs


@pytest.fixture(scope="module")
def config(texts, tmp_path_factory):
    return moe.Config(
        text=TextConfig(data=texts, context=16, batch_size=4),
        decoder=TINY,
        run=RunConfig(
            steps=4, eval_every=2, quiet=True, out=tmp_path_factory.mktemp("moe") / "run"
        ),
        sample=SampleConfig(sample_tokens=4),
    )


@pytest.mark.slow
def test_a_run_logs_the_load(config, capsys):
    folder = moe.train(config).run.folder
    load = read_layers(folder, "train/load")["blocks/0/mlp"]
    assert load.shape == (4, TINY.experts)
    np.testing.assert_allclose(load.sum(axis=1), 1, rtol=1e-5)
    assert (folder.path / moe.PLOT).stat().st_size > 1000
    moe.report_load(folder)
    assert "blocks/0/mlp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--chosen 9", "--chosen 9: give at least 1 and at most --experts 8"),
        ("--chosen 0", "--chosen 0: give at least 1 and at most --experts 8"),
        ("--capacity 0", "--capacity 0.0: give a number above 0"),
        ("--balance -1", "--balance -1.0: give a number of at least 0"),
        ("--heads 3", "--width 64 with --heads 3: rotary positions need a width"),
    ],
)
def test_unusable_settings_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        moe.main(arguments.split())
    assert list(tmp_path.iterdir()) == []
