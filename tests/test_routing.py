"""Every leaf goes where a stated rule sends it, in any library's tree."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.core import freeze

from muon_jax._matrix_axes import MatrixAxes
from muon_jax._routing import label_params, matrix_axes, route
from muon_jax._rules import Rule


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def tree_of(path, leaf):
    for name in reversed(path.split("/")):
        leaf = {name: leaf}
    return leaf


def the_route(path, *shape, **options):
    (found,) = jax.tree.leaves(route(tree_of(path, array(*shape)), **options))
    return found


COMMON = {
    # path: (shape, view; None: the fallback)
    "mlp/up/kernel": ((8, 32), MatrixAxes(0, 1)),
    "mlp/up/bias": ((32,), None),
    "norm/scale": ((8,), None),
    "attn/query/kernel": ((8, 2, 4), MatrixAxes(0, (1, 2))),
    "attn/out/kernel": ((2, 4, 8), MatrixAxes((0, 1), 2)),
    "attn/query/bias": ((2, 4), None),
    "stem/conv/kernel": ((3, 3, 4, 16), MatrixAxes((0, 1, 2), 3)),
    "conv1/kernel": ((3, 4, 16), MatrixAxes((0, 1), 2)),
    "dwconv/kernel": ((7, 7, 1, 16), None),
    "wte/embedding": ((50, 8), None),
    "pos_embed": ((1, 16, 8), None),
    "lm_head/kernel": ((8, 50), None),
    "moe/router/kernel": ((8, 4), None),
    "moe/experts/w_in": ((4, 8, 16), MatrixAxes(1, 2)),
    "lstm/hf/kernel": ((8, 8), MatrixAxes(0, 1)),
    "layers/0/weight": ((32, 8), MatrixAxes(rows=1, cols=0)),
    "gate_proj/kernel": ((8, 32), MatrixAxes(0, 1)),
}


@pytest.mark.parametrize(("path", "case"), COMMON.items(), ids=COMMON)
def test_common_leaves(path, case):
    shape, view = case
    found = the_route(path, *shape)
    ndim = len(shape)
    if view is None:
        assert (found.label, found.axes) == ("adamw", None)
    else:
        assert found.label == "muon"
        groups = [
            tuple(axis % ndim for axis in axes) for axes in (found.axes.rows, found.axes.cols)
        ]
        assert groups == [view.rows, view.cols]


Pair = collections.namedtuple("Pair", ["kernel", "bias"])


@pytest.mark.parametrize(
    "params",
    [
        {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        freeze({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}),
        Pair(jnp.ones((2, 3)), jnp.ones(3)),
        (jnp.ones((2, 3)), [jnp.ones(3), None, optax.MaskedNode()]),
        nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param),
        nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        eqx.filter(eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.is_inexact_array),
    ],
    ids=["dict", "frozen", "namedtuple", "sequence", "nnx state", "nnx module", "equinox"],
)
def test_any_pytree_keeps_its_structure(params):
    labels = label_params(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    by_shape = {leaf.shape: label for leaf, label in zip(*map(jax.tree.leaves, (params, labels)))}  # noqa: B905
    assert by_shape == {
        (2, 3): "muon",
        **{(size,): "adamw" for size in (2, 3) if (size,) in by_shape},
    }


def test_labels_drive_multi_transform_over_nnx():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    transform = optax.multi_transform(
        {"muon": optax.sgd(1.0), "adamw": optax.set_to_zero()}, label_params
    )
    optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
    kernel = model.kernel.get_value()
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    assert jnp.array_equal(model.kernel.get_value(), kernel - 1)
    assert not model.bias.get_value().any()


def test_your_rules_come_first():
    view = MatrixAxes(rows=0, cols=1, split=2)
    rules = [Rule("*/gate_up/kernel", view), Rule("*/{up,down}/kernel", "frozen", why="tuned")]
    assert the_route("mlp/gate_up/kernel", 4, 16, rules=rules).axes == view
    assert the_route("gate_up/kernel", 4, 16, rules=rules).axes == view
    frozen = the_route("mlp/down/kernel", 16, 4, rules=rules)
    assert (frozen.label, frozen.axes, frozen.why) == ("frozen", None, "tuned")
    assert the_route("mlp/other/kernel", 16, 4, rules=rules).axes == MatrixAxes(0, 1)


def test_an_unknown_kernel_is_refused_with_the_lines_to_write():
    params = {"mixer": [{"mix": array(2, 3, 4)}, {"mix": array(2, 3, 4)}]}
    with pytest.raises(ValueError, match=r"mixer/0/mix, mixer/1/mix can be read") as caught:
        label_params(params)
    message = str(caught.value)
    line = 'Rule("mixer/*/mix", MatrixAxes(rows=-2, cols=-1))'
    assert message.count(line) == 1
    views = matrix_axes(params, rules=[eval(line)])
    assert jax.tree.leaves(views) == [MatrixAxes(-2, -1)] * 2
    assert jax.tree.leaves(label_params(params, ambiguous="fallback")) == ["adamw"] * 2


def test_integer_leaves_are_refused_by_path():
    params = {"table": {"ids": jax.ShapeDtypeStruct((3,), jnp.int32)}}
    with pytest.raises(TypeError, match=r"^muon_jax\.label_params: 'table/ids' has dtype int32"):
        label_params(params)


def test_leaves_that_are_no_arrays_are_refused_by_path():
    with pytest.raises(TypeError, match=r"'act' is a str, not an array"):
        label_params({"act": "gelu"})


def test_an_empty_tree_is_refused():
    with pytest.raises(ValueError, match=r"^muon_jax\.matrix_axes: .*no arrays"):
        matrix_axes({"nothing": None})


def test_a_view_that_does_not_fit_is_refused_by_path():
    with pytest.raises(ValueError, match=r"does not fit 'dense/kernel' of shape \(4, 6\)"):
        the_route("dense/kernel", 4, 6, rules=[Rule("*/kernel", MatrixAxes(0, 1, split=4))])


def test_scanned_layers_are_a_batch():
    make = nnx.vmap(lambda rngs: nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False))
    views = matrix_axes(
        {"layers": nnx.state(make(nnx.Rngs(0).split(3)), nnx.Param), "norm": array(5)}
    )
    assert views["layers"]["query"]["kernel"].get_value() == MatrixAxes(1, (2, 3))
    assert views["layers"]["out"]["kernel"].get_value() == MatrixAxes((1, 2), 3)
