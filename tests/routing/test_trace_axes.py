"""`trace_axes`: its arguments, the uses of its result, and its errors."""

import functools
import re
from pathlib import Path

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from forwards import FORWARDS
from traces import answers, array, cross_entropy, shown

import muon_jax
from muon_jax import MatrixAxes, Rule, trace_axes
from muon_jax.routing.trace._verdict import POLICY

SHAPES = {
    "table": array(20, 8),
    "tower": {"odd": array(8, 2, 3), "b": array(2, 3)},
    "depthwise": array(6, 4),
    "w": array(4, 20),
}
TOKENS = array(2, 5, dtype="int32")


def loss(params, tokens):
    """By name `depthwise` would be a filter, `odd` ambiguous, and `w` not an output head."""
    x = jnp.einsum("btd,dhk->bthk", params["table"][tokens], params["tower"]["odd"])
    x = (x + params["tower"]["b"][None, None]).reshape(*tokens.shape, 6)
    return cross_entropy(jnp.tanh(x @ params["depthwise"]) @ params["w"], tokens)


TRACED = trace_axes(loss, SHAPES, TOKENS)
LABELS = {
    "table": "adamw",
    "tower": {"odd": "muon", "b": "adamw"},
    "depthwise": "muon",
    "w": "adamw",
}


def test_the_answer_is_a_tree_of_views_and_one_of_reasons():
    assert TRACED.axes == {
        "table": None,
        "tower": {"odd": MatrixAxes(0, (1, 2)), "b": None},
        "depthwise": MatrixAxes(0, 1),
        "w": None,
    }
    assert TRACED.reasons["w"] == POLICY["logits"][1]
    assert str(TRACED).splitlines()[0].split(maxsplit=3) == [
        "depthwise",
        "(6,",
        "4)",
        f"MatrixAxes(rows=0, cols=1)       {POLICY['matrix'][1]}",
    ]


def ones(shapes):
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)


def test_the_answer_goes_into_muon_explain_and_label_params():
    params = ones(SHAPES)
    assert muon_jax.label_params(params, axes=TRACED) == LABELS
    explained = muon_jax.explain(SHAPES, muon_jax.muon(1.0, axes=TRACED))
    for leaf, traced in zip(explained.leaves, TRACED.leaves, strict=True):
        assert leaf.path == traced.path
        assert leaf.why.removesuffix("; each head is orthogonalised by itself") == traced.why
    tx = muon_jax.muon(1e-3, axes=TRACED)
    state = tx.init(params)
    momenta = [
        jnp.shape(leaf)
        for leaf in jax.tree.leaves(
            state, is_leaf=lambda node: isinstance(node, muon_jax.MuonState)
        )
        if isinstance(leaf, muon_jax.MuonState)
        for leaf in jax.tree.leaves(leaf.mu)
    ]
    assert sorted(momenta) == [(6, 4), (8, 2, 3)]
    updates, _ = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_the_answer_goes_into_a_part_of_the_tree():
    tx = optax.multi_transform(
        {"muon": muon_jax.scale_by_muon(axes=TRACED), "adamw": optax.set_to_zero()},
        muon_jax.label_params(SHAPES, axes=TRACED),
    )
    params = ones(SHAPES)
    updates, _ = tx.update(params, tx.init(params), params)
    assert float(jnp.abs(updates["depthwise"]).max()) > 0
    assert float(jnp.abs(updates["w"]).max()) == 0


def test_the_answer_is_no_schedule():
    tx = optax.inject_hyperparams(muon_jax.muon)(learning_rate=1e-3, axes=TRACED)
    tx.init(ones(SHAPES))


def test_rules_of_the_user_come_first():
    rules = [Rule("w", MatrixAxes(0, 1))]
    assert muon_jax.label_params(SHAPES, rules=rules, axes=TRACED)["w"] == "muon"


def test_plain_trees_and_functions_serve_as_axes_too():
    for axes in (TRACED.axes, lambda params: TRACED.axes):
        assert muon_jax.label_params(SHAPES, axes=axes) == LABELS


def test_names_decide_where_the_loss_does_not_tell():
    def spectral(params, x):
        mixed = jnp.fft.rfft(x, axis=-1).real @ jnp.fft.rfft(params["dense"]["kernel"]).real
        return mixed.sum() + jnp.fft.rfft(params["odd"]).real.sum()

    params = {"dense": {"kernel": array(5, 8)}, "odd": array(2, 3, 4)}
    traced = trace_axes(spectral, params, array(3, 8))
    dense, odd = traced.leaves
    assert shown(dense) == "?0|1"
    assert dense.why.endswith("the loss does not tell: it goes through fft, which is not followed")
    assert shown(odd) == "?ambiguous"
    with pytest.raises(ValueError, match=r"muon_jax\.muon: odd \(2, 3, 4\) can be read"):
        muon_jax.muon(1e-3, axes=traced).init(ones(params))
    left = muon_jax.label_params(params, axes=traced, ambiguous="fallback")
    assert left == {"dense": {"kernel": "muon"}, "odd": "adamw"}


# Libraries


def test_a_module_of_nnx_trains_with_its_own_views():
    built, model, args = FORWARDS["ResNet (NNX)"]()
    of_module = trace_axes(built, model, *args)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    of_state = trace_axes(
        lambda params, rest, *args: built(nnx.merge(graph, params, rest), *args),
        params,
        rest,
        *args,
    )
    assert of_module == of_state

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.head = nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(x))

    net = Net(nnx.Rngs(0))
    x, labels = jnp.ones((4, 8)), jnp.zeros(4, int)
    objective = lambda net, x, labels: cross_entropy(net(x), labels)  # noqa: E731
    traced = trace_axes(objective, net, x, labels)
    optimizer = nnx.Optimizer(net, muon_jax.muon(1e-3, axes=traced), wrt=nnx.Param)
    grads = nnx.grad(objective)(net, x, labels)
    optimizer.update(net, grads)
    assert bool(jnp.isfinite(net.head.kernel[...]).all())


def test_a_module_of_equinox_serves_whole_or_filtered():
    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    whole = trace_axes(lambda model, x: jax.vmap(model)(x).sum(), model, array(2, 4))
    part = trace_axes(
        lambda arrays, x: jax.vmap(eqx.combine(arrays, rest))(x).sum(), arrays, array(2, 4)
    )
    assert whole == part
    assert muon_jax.label_params(arrays, axes=whole).layers[0].weight == "muon"


def test_linen_and_haiku():
    x = array(2, 4)
    dense = nn.Dense(3)
    params = jax.eval_shape(dense.init, jax.random.key(0), x)
    assert answers(dense.apply, params, x) == {"params/kernel": "0|1"}
    haiku = pytest.importorskip("haiku")
    net = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([8, 3])(x)))
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    assert set(answers(net.apply, params, x).values()) == {"0|1"}


# Bad input

BAD = {
    "no function": (
        lambda: trace_axes(3, SHAPES),
        TypeError,
        "muon_jax.trace_axes(loss=3): give a function of the parameters.",
    ),
    "arguments that do not fit": (
        lambda: trace_axes(loss, SHAPES),
        TypeError,
        "muon_jax.trace_axes: the loss cannot be traced, TypeError: missing a required argument: "
        "'tokens'. Give it the arguments with which jax.grad(loss) runs; strings, numbers and "
        "functions are held fixed, arrays are abstract.",
    ),
    "shapes that do not fit": (
        lambda: trace_axes(lambda w, x: x @ w, array(3, 4), array(2, 5)),
        TypeError,
        "muon_jax.trace_axes: the loss cannot be traced, TypeError: dot_general requires",
    ),
    "a branch on a value": (
        lambda: trace_axes(lambda w, x: w if x > 0 else -w, array(3, 4), array()),
        TypeError,
        "muon_jax.trace_axes: the loss cannot be traced, TracerBoolConversionError: Attempted",
    ),
    "an error of another call in the loss": (
        lambda: trace_axes(lambda w: muon_jax.newton_schulz()(w).sum(), array(3, 4)),
        ValueError,
        "muon_jax.trace_axes: the loss cannot be traced, ValueError: muon_jax.newton_schulz: the "
        "matrices have shape (3, 4).",
    ),
    "no parameters": (
        lambda: trace_axes(lambda x: x, {"n": array(3, dtype="int32")}),
        TypeError,
        "muon_jax.trace_axes: params holds no floating-point array. Give the parameters first, "
        "trace_axes(loss, params, *args), as the loss takes them.",
    ),
    "another tree": (
        lambda: muon_jax.muon(1e-3, axes=TRACED).init({"other": jnp.ones((2, 3))}),
        ValueError,
        "muon_jax.muon: 'other' of shape (2, 3) is not among those traced. Call "
        "trace_axes(loss, params, *args) with the parameters to be trained.",
    ),
    "no views": (
        lambda: muon_jax.muon(1e-3, axes={"w": "muon"}).init({"w": jnp.ones((2, 3))}),
        TypeError,
        "muon_jax.muon: axes holds 'muon'. Give a MatrixAxes or None for every leaf, as "
        "muon_jax.matrix_axes(params) does.",
    ),
    "another shape": (
        lambda: muon_jax.explain({**SHAPES, "w": array(2, 3)}, muon_jax.muon(1.0, axes=TRACED)),
        ValueError,
        "muon_jax.muon: 'w' of shape (2, 3) was traced as (4, 20). Call",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(message)


def test_a_parameter_that_the_loss_never_uses_goes_by_its_name():
    params = {
        "w": array(4, 3),
        "b": array(3),
        "spare": {"kernel": array(4, 3)},
        "lm_head": array(4, 9),
    }
    said = (
        "muon_jax.trace_axes: the loss never uses 'b', 'lm_head', 'spare/kernel'. Trace the loss "
        "that trains them, or take them out of params; until then their names decide."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(said)}$"):
        traced = trace_axes(lambda params, x: x @ params["w"], params, array(2, 4))
    assert [leaf.read for leaf in traced.leaves] == [False, False, False, True]
    assert muon_jax.label_params(params, axes=traced) == {
        "w": "muon",
        "b": "adamw",
        "spare": {"kernel": "muon"},
        "lm_head": "adamw",
    }


def test_what_is_no_array_is_held_fixed():
    def applied(params, x, *, train, act=None):
        return (act or jnp.tanh)(x @ params["w"]) if train else x

    params = {"w": array(4, 3)}
    assert answers(applied, params, array(2, 4), train=True, act=jax.nn.relu) == {"w": "0|1"}
    step = functools.partial(applied, train=True)
    assert answers(jax.jit(step), params, array(2, 4)) == {"w": "0|1"}


def test_data_that_the_loss_has_captured_are_data():
    x, position = jnp.ones((2, 3, 4)), jnp.ones((3, 4))
    params = {"w": array(4, 3), "p": array(3, 4)}
    loss = lambda params: ((x + position + params["p"][None]) @ params["w"]).sum()  # noqa: E731
    with jax.numpy_rank_promotion("allow"):
        assert answers(loss, params) == {"p": "elementwise", "w": "0|1"}


def test_the_policy_stands_in_the_docs():
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "trace.md"
    rows = dict(re.findall(r"^\| (\S[^|]*?) \|[^|]*\| (\S+) \|$", page.read_text(), re.MULTILINE))
    names = {"muon": "Muon", "adamw": "AdamW"}
    assert {kind: rows.get(kind) for kind in POLICY} == {
        kind: names[label] for kind, (label, _) in POLICY.items()
    }


def test_a_complex_matrix_goes_to_adamw_and_says_why():
    params = {"w": jnp.ones((4, 6), jnp.complex64), "v": jnp.ones((6, 3))}

    def loss(params, x):
        return jnp.sum(jnp.square((x @ params["w"]).real @ params["v"]))

    traced = trace_axes(loss, params, jnp.ones((2, 4)))
    found = {leaf.path: leaf for leaf in traced.leaves}
    assert found["v"].axes == MatrixAxes(0, 1)
    assert found["w"].axes is None
    assert "it is complex" in found["w"].why
    muon_jax.muon(1e-3, axes=traced).init(params)
