"""Models of the benchmarks, as trees of shapes, and how they are sharded over a mesh."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

Shapes = Mapping[str, tuple[int, ...]]
Model = Mapping[str, Shapes]


def fused_transformer(layers: int, width: int) -> Model:
    """Shapes of qkv, out, up and down of every layer."""
    shapes = {"qkv": (width, 3 * width), "out": (width, width)}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    return {f"layer_{layer}": shapes for layer in range(layers)}


def transformer(layers: int, width: int) -> Model:
    """Shapes of q, k, v, o, up and down of every layer."""
    shapes = dict.fromkeys("qkvo", (width, width))
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    return {f"layer_{layer}": shapes for layer in range(layers)}


def with_heads(layers: int, width: int, heads: int) -> Model:
    """Shapes of the layers of `transformer` with an axis of heads, as Flax stores attention."""
    inputs = (width, heads, width // heads)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("query", "key", "value"), inputs)
    shapes |= {"out": (heads, width // heads, width), "up": (width, 4 * width)}
    shapes |= {"down": (4 * width, width)}
    return {f"layer_{layer}": shapes for layer in range(layers)}


def mixture(layers: int, width: int, experts: int) -> Model:
    """Shapes of the attention, the router and the stacked experts of every layer."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("qkvo", (width, width))
    shapes |= {"router": (width, experts), "up": (experts, width, 2 * width)}
    shapes |= {"down": (experts, 2 * width, width)}
    return {f"layer_{layer}": shapes for layer in range(layers)}


def scanned(model: Model) -> Model:
    """Stacks layers of one kind along a leading axis, as `nnx.scan` keeps them."""
    shapes = next(iter(model.values()))
    return {"layers": {name: (len(model), *shape) for name, shape in shapes.items()}}


def abstract(model: Model, dtype: Any = "float32") -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the parameters of a model as shapes and dtypes, without values."""
    return {
        layer: {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
        for layer, shapes in model.items()
    }


def last_two_axes(params: Any) -> Any:
    """Returns optax's dimension numbers of leaves whose last two axes are a matrix."""
    numbers = optax.contrib.MuonDimensionNumbers(-2, -1)
    return jax.tree.map(lambda leaf: numbers if len(leaf.shape) > 1 else None, params)


def by_name(params: Any) -> Any:
    """Returns optax's dimension numbers of the leaves of `with_heads`."""
    numbers = optax.contrib.MuonDimensionNumbers
    axes = {"query": ((0,), (1, 2)), "out": ((0, 1), (2,)), "up": ((0,), (1,))}
    axes |= {"key": axes["query"], "value": axes["query"], "down": axes["up"]}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: numbers(*axes[path[-1].key]), params)


SUMMING = ("out", "o", "down")
"""Leaves whose rows are sharded like the columns of the leaf before (Shoeybi et al. 2019)."""


@dataclass(frozen=True)
class Layout:
    """How the leaves of a model are sharded over a mesh, by their names.

    Attributes:
        sizes: returns the sizes of the mesh axes, by name, for a number of devices.
        rows: the mesh axis that shards the rows.
        cols: the mesh axis that shards the columns.
        experts: the mesh axis that shards the first axis of leaves with more than two axes.
        crosswise: whether `rows` and `cols` are swapped for `SUMMING` leaves.
    """

    sizes: Callable[[int], dict[str, int]]
    rows: str | None = None
    cols: str | None = None
    experts: str | None = None
    crosswise: bool = False

    @property
    def is_sharded(self) -> bool:
        return bool(self.rows or self.cols or self.experts)

    def spec(self, name: str, ndim: int) -> P:
        if ndim < 2:
            return P()
        matrix = (self.rows, self.cols)
        if self.crosswise and name in SUMMING:
            matrix = matrix[::-1]
        batch = (self.experts, *(None,) * (ndim - 3)) if ndim > 2 else ()
        return P(*batch, *matrix)


def _two_axes(first: str, second: str) -> Callable[[int], dict[str, int]]:
    """Splits 8 devices into 4 × 2; with 64 or more, the second axis has 16."""

    def sizes(devices: int) -> dict[str, int]:
        short = min(16, max(2, devices // 4))
        return {first: devices // short, second: short}

    return sizes


LAYOUTS: Mapping[str, Layout] = {
    "replicated": Layout(lambda n: {"data": n}),
    "fsdp": Layout(lambda n: {"fsdp": n}, rows="fsdp"),
    "tensor": Layout(lambda n: {"tensor": n}, cols="tensor", crosswise=True),
    "fsdp × tensor": Layout(
        _two_axes("fsdp", "tensor"), rows="fsdp", cols="tensor", crosswise=True
    ),
    "HSDP": Layout(lambda n: {"replica": 2, "fsdp": n // 2}, rows="fsdp"),
    "expert": Layout(
        _two_axes("expert", "tensor"),
        cols="tensor",
        experts="expert",
        crosswise=True,
    ),
}


def place(tree: Any, where: Any, layout: Layout | None = None) -> Any:
    """Adds shardings to abstract parameters, or to the state of their optimizer.

    Args:
        tree: leaves with a shape and a dtype, named as those of the model.
        where: the mesh of the layout, or one device if there is no layout.
        layout: gives the specs. Momentum is sharded like its parameter; vectors are replicated.
    """

    def placed(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        sharding: Sharding = SingleDeviceSharding(where)
        if layout is not None:
            names = [step.key for step in path if isinstance(step, jax.tree_util.DictKey)]
            sharding = NamedSharding(where, layout.spec(names[-1] if names else "", leaf.ndim))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, tree)


def make_mesh(layout: Layout, devices: Any, axis_types: str | tuple[str, ...] = "Auto") -> Mesh:
    """Arranges devices for a layout, with one type for all axes of the mesh or one for each."""
    sizes = layout.sizes(len(devices))
    names = (axis_types,) * len(sizes) if isinstance(axis_types, str) else axis_types
    array = np.array(devices).reshape(tuple(sizes.values()))
    return Mesh(array, tuple(sizes), axis_types=tuple(AxisType[name] for name in names))
