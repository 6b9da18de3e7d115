"""What a rule may know of a leaf: its names, its shape, its neighbours, its stacked axes.

A stack axis only repeats a layer (`nn.scan`, `nnx.vmap`, pipeline stages), so rules are written
for the shape without it. It is found, surest first, from
1. the axis names that Flax keeps beside a parameter (`nn.PARTITION_NAME`),
2. vectors that are no longer vectors: a norm's scale of shape (layers, width) says that everything
   beside it which starts with that length is stacked too,
3. attention kernels, whose query and output only fit together under one reading,
4. a container called `layers` or the like that holds no numbered children.
"""

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from muon_jax._checks import path_name, refused

Shape: TypeAlias = tuple[int, ...]
Words: TypeAlias = tuple[str, ...]

WEIGHT_NAMES = ("kernel", "weight", "weights", "w", "embedding", "embeddings", "value")
"""Last words that say only "the array of this layer"; the word before names the layer."""

STACK_AXES = {"layer", "layers", "block", "blocks", "stage", "stages", "scan", "stack"}
STACK_AXES |= {"exp", "expert", "experts"}
"""Logical axis names along which a layer, or an expert, is only repeated."""

STACK_CONTAINERS = re.compile(
    r"(layer|block|stage|scan|stack|repeat|group)s?(_stack|_\d+)?|.*scan.*"
)
NORMS = re.compile(r".*norm.*|(ln|bn|gn)_?[a-z0-9]*|.*_(ln|bn|gn)")
NORM_VECTORS = {"scale", "weight", "gamma", "bias", "beta", "b", "g", "offset"}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter as the rules see it.

    Attributes:
        path: the names down to it, joined by `/`, without Flax's final `.value`.
        shape: as stored, stack axes included.
        stack: the axes that only repeat the layer.
        family: the shapes beside it: every leaf below the parent of its layer, by relative path.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    stack: Shape = ()
    family: Mapping[str, Shape] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def words(self) -> Words:
        return words_of(self.path)

    @property
    def layer(self) -> str:
        """The word that names the layer: `query` in `attn/query/kernel`, `lm_head` on its own."""
        return self.words[_layer_depth(self.words) - 1]

    @property
    def core(self) -> Shape:
        """The shape of one layer: without the stack axes."""
        return tuple(size for axis, size in enumerate(self.shape) if axis not in self.stack)

    def core_of(self, shape: Shape) -> Shape | None:
        """Strips this leaf's leading stack axes off a neighbour; None where they differ."""
        lead = tuple(self.shape[axis] for axis in self.stack)
        return shape[len(lead) :] if shape[: len(lead)] == lead else None

    @property
    def bias(self) -> Shape | None:
        """The bias of the same layer, without stack axes and axes of length one."""
        for name in (f"{self.layer}/bias", f"{self.layer}/b"):
            core = self.core_of(self.family[name]) if name in self.family else None
            if core is not None:
                return tuple(size for size in core if size != 1)
        return None

    def beside(self, pattern: str) -> Iterator[Shape]:
        """Yields the shapes of the neighbours whose relative path matches, stack axes removed."""
        for name, shape in self.family.items():
            core = self.core_of(shape)
            if core is not None and fnmatch.fnmatchcase(name, pattern):
                yield core


def words_of(path: str) -> Words:
    """Splits a path at slashes and dots, in lower case, so that one pattern fits every library."""
    words = tuple(word for word in re.split(r"[/.]", path.lower()) if word not in ("", "~"))
    return words or ("",)


def leaves_of(params: Any, call: str) -> tuple[list[Leaf], Any]:
    """Lists the leaves of a parameter tree with all that rules may ask.

    Raises:
        ValueError: the tree holds no arrays.
        TypeError: a leaf is no array of real or complex numbers.
    """
    entries, structure = jax.tree_util.tree_flatten_with_path(params)
    if not entries:
        raise refused(call, "the tree of parameters has no arrays", "Give the model's parameters")
    plain = [_plain_leaf(key_path, value, call) for key_path, value in entries]
    named = _stacks_by_name(params, [key_path for key_path, _ in entries], plain)
    stacks = _stacks_by_evidence(plain)
    families = _families(plain)
    return [
        dataclasses.replace(
            leaf,
            stack=named.get(leaf.path, tuple(range(stacks[leaf.path]))),
            family=families[leaf.words[: _layer_depth(leaf.words) - 1]],
        )
        for leaf in plain
    ], structure


def _plain_leaf(key_path: Any, value: Any, call: str) -> Leaf:
    if key_path and key_path[-1] == jax.tree_util.GetAttrKey("value"):
        key_path = key_path[:-1]
    path = path_name(key_path)
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
    return Leaf(path, tuple(value.shape), value.dtype)


def _layer_depth(words: Words) -> int:
    """How many words lead to the layer and name it."""
    return len(words) - (len(words) > 1 and words[-1] in WEIGHT_NAMES)


def _families(leaves: Sequence[Leaf]) -> dict[Words, dict[str, Shape]]:
    """Groups the shapes by the parents of layers; each leaf counts in its two nearest."""
    parents = {leaf.words[: _layer_depth(leaf.words) - 1] for leaf in leaves}
    families: dict[Words, dict[str, Shape]] = {parent: {} for parent in parents}
    for leaf in leaves:
        for depth in range(max(0, len(leaf.words) - 3), len(leaf.words)):
            if leaf.words[:depth] in families:
                families[leaf.words[:depth]]["/".join(leaf.words[depth:])] = leaf.shape
    return families


def _stacks_by_name(
    params: Any, key_paths: Sequence[Any], leaves: Sequence[Leaf]
) -> dict[str, Shape]:
    """Reads the axis names that a Flax variable (NNX) or box (Linen) keeps beside its array."""
    names = {
        path: _axis_names(node)
        for path, node in jax.tree_util.tree_leaves_with_path(
            params, is_leaf=lambda node: _axis_names(node) is not None
        )
    }
    stacks = {}
    for key_path, leaf in zip(key_paths, leaves, strict=True):
        axis_names = names.get(key_path[:-1])
        if axis_names and len(axis_names) == len(leaf.shape):
            stack = tuple(axis for axis, name in enumerate(axis_names) if name in STACK_AXES)
            if stack:
                stacks[leaf.path] = stack
    return stacks


def _axis_names(node: Any) -> Sequence[str | None] | None:
    if hasattr(node, "get_metadata"):
        metadata = node.get_metadata()
        return metadata.get("out_sharding") or metadata.get("sharding_names")
    return getattr(node, "names", None) if hasattr(node, "unbox") else None


def _stacks_by_evidence(leaves: Sequence[Leaf]) -> dict[str, int]:
    """Counts the leading stack axes of every leaf."""
    common = _common_leading_sizes(leaves)
    found: dict[Words, int] = {}
    for prefix, sizes in _claims(leaves):
        for count in range(1, len(sizes) + 1):
            top = prefix
            while top and common[top[:-1]][:count] == sizes[:count]:
                top = top[:-1]
            if common[top][:count] == sizes[:count]:
                found[top] = max(found.get(top, 0), count)
    return {
        leaf.path: max((found.get(top, 0) for top in _prefixes(leaf.words)), default=0)
        for leaf in leaves
    }


def _claims(leaves: Sequence[Leaf]) -> Iterator[tuple[Words, Shape]]:
    """Yields places in the tree with the sizes of the stack axes that a leaf shows there."""
    for leaf in leaves:
        words, shape = leaf.words, leaf.shape
        is_norm = len(words) > 1 and words[-1] in NORM_VECTORS and NORMS.fullmatch(words[-2])
        if is_norm and len(shape) > 1 and 1 not in shape:
            yield words, shape[:-1]
        if len(shape) != 3 or any("conv" in word for word in words):
            continue
        for depth, word in enumerate(words[:-1], start=1):
            if STACK_CONTAINERS.fullmatch(word) and not words[depth].isdigit():
                yield words[:depth], shape[:1]


def _common_leading_sizes(leaves: Sequence[Leaf]) -> dict[Words, Shape]:
    """For every place in the tree, the sizes with which all shapes below it start."""
    common: dict[Words, Shape] = {}
    for leaf in leaves:
        for place in _prefixes(leaf.words):
            known = common.get(place, leaf.shape)
            common[place] = tuple(
                size
                for count, size in enumerate(known, start=1)
                if leaf.shape[:count] == known[:count]
            )
    return common


def _prefixes(words: Words) -> Iterator[Words]:
    return (words[:depth] for depth in range(len(words) + 1))
