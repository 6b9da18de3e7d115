"""What a rule may know of a leaf: its names, its shape, its neighbours, its stacked axes."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muon_jax._checks import refused
from muon_jax.routing._stacks import bias_beside, stack_axes
from muon_jax.routing._vocabulary import (
    ATTENTION_INPUT,
    ATTENTION_OUTPUT,
    EMBEDDING,
    NORM,
    STACK_AXIS,
    WEIGHT,
    biases_of,
    hides_bias,
    names_outputs_first,
    place_of,
)
from muon_jax.trees._paths import hidden_by_masks, named_leaves
from muon_jax.trees._patterns import Words, matches, words_of
from muon_jax.views._matrix_axes import Shape, without_ones

_WITH_HEADS = f"*/{{{ATTENTION_INPUT},{ATTENTION_OUTPUT}}}"
"""Layers whose weights have more axes than two, and are no filters."""

_NO_TABLE = f"*pos*,*relative*,*patch*,*unembed*,{NORM}"
"""Names that look like those of tables of tokens."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """The shapes of a whole tree by their words, for leaves that ask about their neighbours."""

    shapes: Mapping[Words, Shape]
    hidden: Set[Words] = frozenset()
    """The words of what a mask hides."""

    @functools.cached_property
    def children(self) -> Mapping[Words, Mapping[str, None]]:
        """The names directly below every place, in order."""
        below: dict[Words, dict[str, None]] = {}
        for words in self.shapes:
            for depth, word in enumerate(words):
                below.setdefault(words[:depth], {})[word] = None
        return below

    @functools.cached_property
    def having(self) -> Mapping[int, Set[Words]]:
        """The words of all arrays that have an axis of a size, by that size."""
        words_by_size: dict[int, set[Words]] = defaultdict(set)
        for words, shape in self.shapes.items():
            for size in shape:
                words_by_size[size].add(words)
        return words_by_size

    @functools.cached_property
    def tables(self) -> Mapping[Words, tuple[int, int]]:
        """The shapes of all embeddings, but of positions and patches, by their words."""
        pattern = f"*/{{{EMBEDDING}}}{{,/w,/weight}}"
        known = self.shapes.keys() | self.hidden
        return {
            words: (shape[0], shape[1])
            for words, shape in self.shapes.items()
            if len(shape) == 2
            and matches(pattern, "/".join(words))
            and not any(matches(_NO_TABLE, word) for word in words[-2:])
            and known.isdisjoint(biases_of(place_of(words)))
        }

    @functools.cached_property
    def matrices(self) -> tuple[Words, ...]:
        """The words of the weights of all layers that have two axes."""
        return tuple(
            words
            for words, shape in self.shapes.items()
            if len(shape) == 2 and matches(WEIGHT, words[-1])
        )

    @functools.cached_property
    def channels(self) -> tuple[Shape, ...]:
        """Inputs and outputs of all filters of an image."""
        return tuple(
            self._channels(words, shape)
            for words, shape in self.shapes.items()
            if len(shape) == 4 and matches(WEIGHT, words[-1]) and _is_filter(words, shape)
        )

    def _channels(self, words: Words, shape: Shape) -> Shape:
        """Outputs are where the bias says, or else the name."""
        inputs, outputs = shape[1::-1] if names_outputs_first(words) else shape[2:]
        bias = bias_beside(words, self.shapes)
        return (outputs, inputs) if bias == (inputs,) != (outputs,) else (inputs, outputs)


def _is_filter(words: Words, shape: Shape) -> bool:
    """Tells a filter from heads and from stacks, of which few have sides alike."""
    sides = shape[2:] if names_outputs_first(words) else shape[:2]
    place = "/".join(place_of(words))
    return not matches(_WITH_HEADS, place) and (sides[0] == sides[1] or "conv" in place)


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """One parameter as the rules see it.

    Attributes:
      path: the names down to it, joined by `/`, without a final `.value` of Flax.
      shape: as stored, stack axes included.
      dtype: as stored.
      stack: the axes that only repeat the layer (`nn.scan`, `nnx.vmap`, experts).
      tree: the shapes of the whole tree.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    stack: Shape
    tree: Tree = dataclasses.field(repr=False)

    @functools.cached_property
    def words(self) -> Words:
        return words_of(self.path)

    @functools.cached_property
    def name(self) -> str:
        """What patterns see of the path."""
        return "/".join(self.words)

    @functools.cached_property
    def core(self) -> Shape:
        """The shape of one layer: without the stack axes."""
        return tuple(size for axis, size in enumerate(self.shape) if axis not in self.stack)

    @functools.cached_property
    def place(self) -> Words:
        return place_of(self.words)

    @property
    def layer(self) -> str:
        """The name of the layer: `query` of `attn/query/kernel`, `lm_head` of a bare `lm_head`."""
        return self.place[-1] if self.place else ""

    @property
    def outputs_first(self) -> bool:
        """Whether the name says that outputs are stored first, as in torch and Equinox."""
        return names_outputs_first(self.words)

    @property
    def bias(self) -> Shape | None:
        """The bias of the same layer, without stack axes and axes of length one."""
        for words in biases_of(self.place):
            shape = self._core_of(self.tree.shapes.get(words))
            if shape is not None and self.place != self.words:
                return without_ones(shape)
        return None

    @property
    def bias_is_hidden(self) -> bool:
        """Whether a mask hides the bias, which might speak against the name or show a stack."""
        return hides_bias(self.words, self.tree.hidden)

    @functools.cached_property
    def neighbours(self) -> Mapping[str, Shape | None]:
        """The layers beside this one: shapes of their weights, without stack axes and axes of one.

        Layers that are nested, or whose weight is hidden, have None.
        """
        parent = self.place[:-1]
        return {
            name: next(self._weights_at((*parent, name)), None)
            for name in self.tree.children.get(parent, ())
            if name != self.layer
        }

    def beside(self, pattern: str, ndim: int | None = None) -> Shape | None:
        """Finds the first layer beside this one by its name, and by rank if that is given."""
        for name, shape in self.neighbours.items():
            if shape and matches(pattern, name) and ndim in (None, len(shape)):
                return shape
        return None

    def _weights_at(self, place: Words) -> Iterator[Shape]:
        arrays = [word for word in self.tree.children.get(place, ()) if matches(WEIGHT, word)]
        for words in [place, *((*place, word) for word in arrays)]:
            shape = self._core_of(self.tree.shapes.get(words))
            if shape is not None:
                yield without_ones(shape)

    def _core_of(self, shape: Shape | None) -> Shape | None:
        """Takes this leaf's stack axes off a neighbour that has them too."""
        if shape is None or any(
            shape[axis : axis + 1] != (self.shape[axis],) for axis in self.stack
        ):
            return shape
        return tuple(size for axis, size in enumerate(shape) if axis not in self.stack)


def leaves_of(params: Any, call: str) -> tuple[list[Leaf], Any]:
    """Lists the leaves of a parameter tree, and its structure.

    Raises:
      ValueError: the tree holds no arrays.
      TypeError: a leaf is no array of real or complex floating-point numbers.
    """
    entries, structure = jax.tree_util.tree_flatten_with_path(params)
    hidden = hidden_by_masks(params)
    if not entries and not hidden:
        raise refused(call, "the tree of parameters has no arrays", "Give the model's parameters")
    paths = [path for path, _ in named_leaves(params)]
    for path, (_, value) in zip(paths, entries, strict=True):
        _check_array(path, value, call)
    shapes = [tuple(value.shape) for _, value in entries]
    words = [words_of(path) for path in paths]
    named = _stacks_by_name(params, [key_path for key_path, _ in entries], shapes)
    stacks = stack_axes(
        list(zip(words, shapes, strict=True)),
        {words[index]: shapes[index][:1] for index, stack in named.items() if stack == (0,)},
        hidden,
    )
    tree = Tree(dict(zip(words, shapes, strict=True)), hidden)
    leaves = [
        Leaf(path, shape, value.dtype, named.get(index, stack), tree)
        for index, (path, shape, (_, value), stack) in enumerate(
            zip(paths, shapes, entries, stacks, strict=True)
        )
    ]
    return leaves, structure


def _check_array(path: str, value: Any, call: str) -> None:
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise refused(
            call,
            f"'{path}' is a {type(value).__name__}, not an array",
            "Give only the arrays that are trained, such as `nnx.state(model, nnx.Param)` or "
            "`eqx.filter(model, eqx.is_inexact_array)`",
            TypeError,
        )
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        raise refused(
            call,
            f"'{path}' has dtype {value.dtype}, which has no gradient",
            "Keep it in a collection that is not trained, or freeze it with `optax.masked`",
            TypeError,
        )


def _stacks_by_name(
    params: Any, key_paths: Sequence[Any], shapes: Sequence[Shape]
) -> dict[int, Shape]:
    """Reads the axis names that a Flax variable (NNX) or box (Linen) keeps beside its array."""
    boxes = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda node: _axis_names(node) is not None
    )
    names = {path: _axis_names(node) for path, node in boxes}
    stacks = {}
    for index, (key_path, shape) in enumerate(zip(key_paths, shapes, strict=True)):
        axis_names = names.get(key_path[:-1]) or ()
        stack = tuple(
            axis
            for axis, name in enumerate(axis_names)
            if isinstance(name, str) and matches(STACK_AXIS, name)
        )
        if stack and len(axis_names) == len(shape):
            stacks[index] = stack
    return stacks


def _axis_names(node: Any) -> Sequence[Any] | None:
    if hasattr(node, "get_metadata"):
        return node.get_metadata().get("out_sharding")
    return getattr(node, "names", None) if hasattr(node, "unbox") else None
