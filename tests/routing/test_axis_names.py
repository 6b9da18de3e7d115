"""Stacks recognised by the axis names that Flax stores with an array."""

import equinox as eqx
import flax.linen as nn
import jax
import pytest
from flax import nnx, struct
from flax.core import meta
from routes import array, shown, view_of

from muon_jax.routing._route import route


def partitioned(in_axes):
    kernel_init = nnx.with_partitioning(nnx.initializers.ones, ("inputs", "outputs"))

    def make(rngs):
        return nnx.Linear(4, 6, kernel_init=kernel_init, use_bias=False, rngs=rngs)

    stack = nnx.vmap(make, out_axes=in_axes, transform_metadata={nnx.PARTITION_NAME: "layers"})
    with nnx.use_eager_sharding(False):
        return nnx.state(nnx.eval_shape(lambda: stack(nnx.Rngs(0).split(3))), nnx.Param)


@pytest.mark.parametrize(("axis", "view"), [(0, "1|2"), (1, "0|2"), (2, "0|1")])
def test_a_stack_named_by_nnx_may_lie_on_any_axis(axis, view):
    assert view_of(route(partitioned(axis))["kernel"].get_value()) == view


@pytest.mark.parametrize(("axis", "view"), [(0, "1|2"), (1, "0|2")])
def test_a_stack_named_by_linen_may_lie_on_any_axis(axis, view):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            init = nn.with_logical_partitioning(nn.initializers.ones, ("inputs", "outputs"))
            return nn.Dense(4, kernel_init=init, use_bias=False, name="mix")(x), None

    stack = nn.scan(
        Layer,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    params = jax.eval_shape(stack().init, jax.random.key(0), array(2, 4), None)
    assert [view_of(leaf) for leaf in jax.tree.leaves(route(params))] == [view]


def in_linen(shape, names):
    return nn.Partitioned(array(*shape), names=names)


def in_nnx(shape, names):
    with nnx.use_eager_sharding(False):
        return nnx.Param(array(*shape), out_sharding=names)


NAMED = {
    # axis names of `mix` (3, 4, 6), shapes of its siblings, and the views; `?` is an error
    "a stack": (("layers", None, None), {}, {"mix": "1|2"}),
    "no stack": ((None, "embed", "mlp"), {}, {"mix": "?"}),
    "a stack that is not named is shown by a norm": (
        (None, "embed", "mlp"),
        {"norm": (3, 4)},
        {"mix": "1|2", "norm": "-"},
    ),
    "a stack of what lies beside": (
        ("layers", None, None),
        {"merge": (3, 4, 8)},
        {"mix": "1|2", "merge": "1|2"},
    ),
    "the second axis says nothing of what lies beside": (
        (None, "layers", None),
        {"merge": (3, 4, 8)},
        {"mix": "0|2", "merge": "?"},
    ),
    "names for other axes": (("layers", None), {}, {"mix": "?"}),
}


@pytest.mark.parametrize(("names", "beside", "views"), NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("box", [in_linen, in_nnx])
def test_names_say_which_axes_repeat_a_layer(box, names, beside, views):
    params = {"mix": box((3, 4, 6), names), **{name: array(*beside[name]) for name in beside}}
    routes = jax.tree.leaves(route(params, ambiguous="fallback"))
    assert {leaf.path: shown(leaf) for leaf in routes} == views


class Nameless(struct.PyTreeNode, meta.AxisMetadata):
    """A user's box around an array, without axis names."""

    value: jax.ShapeDtypeStruct

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return self.replace(value=val)

    def add_axis(self, index, params):
        return self

    def remove_axis(self, index, params):
        return self


class Named(eqx.Module):
    """Not a box around one array, so its axis names are not those of its parts."""

    mix: jax.ShapeDtypeStruct
    names: tuple[str, ...] = eqx.field(static=True, default=("layers", "embed", "mlp"))


@pytest.mark.parametrize("node", [Nameless(array(3, 4, 6)), Named(array(3, 4, 6))])
def test_only_boxes_with_names_name_axes(node):
    (leaf,) = jax.tree.leaves(route({"tower": node}, ambiguous="fallback"))
    assert leaf.rule == "ambiguous"
