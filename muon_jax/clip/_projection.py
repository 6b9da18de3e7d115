"""The heads of an attention layer: in which columns of which kernels they lie."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from muon_jax.views._matrix_axes import MatrixAxes, Shape, without_ones


@dataclass(frozen=True)
class Projection:
    """The part of a kernel, and of its biases, that makes the queries or the keys of a layer."""

    path: str
    shape: Shape
    axes: MatrixAxes
    part: int
    biases: tuple[str, ...]
    power: float = 0
    """p, where a head takes the factor (τ/S)^p: ½ or 1, or 0 for none."""

    @property
    def layers(self) -> Shape:
        """How many layers each axis of a stack holds; axes of one are left out."""
        return without_ones(tuple(self.shape[i] for i in self.axes.batch_axes(len(self.shape))))

    @property
    def bias_shape(self) -> Shape:
        """The shape of a bias: that of the kernel without inputs."""
        inputs = [axis % len(self.shape) for axis in self.axes.rows]
        return tuple(size for axis, size in enumerate(self.shape) if axis not in inputs)

    @property
    def widths(self) -> list[int]:
        """The number of columns of every part of the view."""
        matrices = self.axes.matrix_shapes(self.shape)
        count = math.prod(self.layers)  # equal parts are folded into the batch
        return [cols for batch, _, cols in matrices for _ in range(batch // count)]

    @property
    def width(self) -> int:
        """The number of columns of this part, which are those of all heads."""
        return self.widths[self.part]

    @property
    def heads(self) -> int | None:
        """The number of heads; None where one axis holds the heads and their widths."""
        split, last = self.axes.split, self.shape[self.axes.cols[-1]]
        if split and split.interleaved and isinstance(split.parts, tuple):
            return self.width // split.parts[self.part]
        return self.width // last if last < self.width and self.width % last == 0 else None

    def spread(self, of_head: Float[Array, "*layers heads"]) -> Float[Array, "..."]:
        """Lays the factors of heads out along the columns of the kernel; other columns take 1.

        The rows have one entry. Only factors are reshaped: the kernel may be large and sharded,
        and stays as it lies.
        """
        inputs = [axis % len(self.shape) for axis in self.axes.rows]
        shape = tuple(1 if axis in inputs else size for axis, size in enumerate(self.shape))
        batch = math.prod(self.layers)
        parts = [jnp.ones((batch, 1, width)) for width in self.widths]
        repeats = self.width // of_head.shape[-1]
        parts[self.part] = jnp.repeat(of_head.reshape(batch, 1, -1), repeats, axis=-1)
        folded, *unequal = self.axes.matrix_shapes(shape)
        matrices = parts if unequal else [jnp.stack(parts, axis=1).reshape(folded)]
        return self.axes.from_matrices(matrices, shape)


@dataclass(frozen=True)
class Layer:
    """The projections of an attention layer, by role."""

    parts: Mapping[str, Projection]

    def __repr__(self) -> str:
        return str({each.path: each.shape for each in self.parts.values()})

    @property
    def layers(self) -> Shape:
        """How many layers a scan stacks in these parameters, for every axis of such a stack."""
        return self.parts["query"].layers

    @property
    def heads(self) -> int | None:
        """The number of heads; None where only the maxima count them."""
        scaled = (each for each in self.parts.values() if each.power)
        return next((each.heads for each in scaled if each.heads), None)

    def has_heads(self, heads: int | None) -> bool:
        """Returns whether every projection may have this many heads, or groups of them."""
        query = self.parts["query"]
        key = self.parts.get("key", query)
        shared = query.width // key.width  # so many heads share a key
        alike = all(each.layers == query.layers for each in self.parts.values())
        if not alike or shared * key.width != query.width:
            return False
        if not heads:
            return heads is None
        counts = dict.fromkeys(self.parts, heads) | {"key": heads // shared}
        return heads % shared == 0 and all(
            each.width % counts[role] == 0 and each.heads in (None, counts[role])
            for role, each in self.parts.items()
        )

    def fits(self, shape: Shape) -> bool:
        """Returns whether maxima of this shape have an entry for every head."""
        return shape != () and self.has_heads(shape[-1]) and without_ones(shape[:-1]) == self.layers
