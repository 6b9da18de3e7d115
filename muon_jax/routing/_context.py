"""A parameter as rules see it: its names, shape, stack axes, bias and siblings."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.trees._patterns import Words, matches
from muon_jax.views._matrix_axes import Shape, without_ones

_NO_TABLE = f"*pos*,*relative*,*patch*,*unembed*,{vocabulary.NORM}"


@dataclasses.dataclass(eq=False)
class Leaf:
    """One parameter as a rule sees it.

    Attributes:
      path: the names down to it, joined by `/`, without a final `.value` of Flax.
      shape: as stored, stack axes included.
      dtype: as stored.
      stack: the axes that only repeat the layer (`nn.scan`, `nnx.vmap`).
    """

    path: str
    shape: Shape
    dtype: np.dtype
    words: Words = dataclasses.field(repr=False)
    names: Words = dataclasses.field(repr=False)
    stack: Shape = ()
    tree: "Tree" = dataclasses.field(init=False, repr=False)

    @functools.cached_property
    def layer_shape(self) -> Shape:
        """The shape of one layer: without the stack axes."""
        return tuple(size for axis, size in enumerate(self.shape) if axis not in self.stack)

    @functools.cached_property
    def layer_path(self) -> Words:
        """The plain names down to the layer, without a final `kernel` and the like."""
        return vocabulary.layer_of(self.names)

    @property
    def layer(self) -> str:
        """The name of the layer: `query` of `attn/query/kernel`, `lm_head` of a bare `lm_head`."""
        return self.layer_path[-1] if self.layer_path else ""

    @property
    def parent(self) -> Words:
        """The words down to the module that holds the layer."""
        return self.words[: max(0, len(self.layer_path) - 1)]

    @functools.cached_property
    def outputs_first(self) -> bool:
        """Whether the name says that outputs are stored first, as in torch and Equinox."""
        return matches("weight,weight_*,*_weight", self.names[-1])

    @functools.cached_property
    def axes(self) -> Shape:
        """The axes of the layer that are longer than one."""
        return tuple(axis for axis, size in enumerate(self.layer_shape) if size != 1)

    @functools.cached_property
    def stored_bias(self) -> "Leaf | None":
        """The bias of the same layer."""
        biases = vocabulary.biases_of(self.words, self.names[-1])
        return next((self.tree.leaves[each] for each in biases if each in self.tree.leaves), None)

    @functools.cached_property
    def bias(self) -> Shape:
        """The shape of the bias without stack axes and axes of size one; () without a bias."""
        return without_ones(self.stored_bias.layer_shape) if self.stored_bias else ()

    @functools.cached_property
    def siblings(self) -> Mapping[str, Shape]:
        """The weight shapes of the other layers of the module, without axes of size one."""
        return self.layers_in(self.parent)

    def layers_in(self, module: Words) -> dict[str, Shape]:
        """Returns the weight shapes of the layers of a module, except this one."""
        layers = self.tree.layers.get(module, {}).items()
        return {name: without_ones(leaf.layer_shape) for name, leaf in layers if leaf is not self}

    def sibling(self, pattern: str, ndim: int | None = None) -> Shape:
        """Returns the first sibling whose plain name fits a pattern, with `ndim` axes if given."""
        for name, shape in self.siblings.items():
            if ndim in (None, len(shape)) and matches(pattern, vocabulary.plain_name(name)):
                return shape
        return ()


class Tree:
    """All parameters of a tree, indexed for rules that read more than one.

    Attributes:
      leaves: every parameter by its words, which no other parameter has.
      children: the words directly below every module.
      layers: the weight of every layer, and every bare array, by the words of the parent.
      weights: the weights of all layers, by their number of axes.
      sizes: the words of all parameters that have an axis of a size, by that size.
    """

    def __init__(self, leaves: Sequence[Leaf]):
        self.leaves = {leaf.words: leaf for leaf in leaves}
        self.children: defaultdict[Words, dict[str, None]] = defaultdict(dict)
        self.layers: defaultdict[Words, dict[str, Leaf]] = defaultdict(dict)
        self.weights: defaultdict[int, list[Leaf]] = defaultdict(list)
        self.sizes: defaultdict[int, set[Words]] = defaultdict(set)
        for words, leaf in self.leaves.items():
            leaf.tree = self
            for size in leaf.shape:
                self.sizes[size].add(words)
            if matches(vocabulary.WEIGHT, leaf.names[-1]):
                self.weights[len(leaf.shape)].append(leaf)
            if leaf.layer_path:
                self.layers[leaf.parent].setdefault(words[len(leaf.parent)], leaf)
            for depth, word in enumerate(words):
                self.children[words[:depth]][word] = None

    @functools.cached_property
    def tables(self) -> Mapping[Words, Shape]:
        """The shapes of all embedding tables except those of positions and patches."""
        pattern = f"*/{{{vocabulary.EMBEDDING}}}{{,/w,/weight}}"
        return {
            words: leaf.shape
            for words, leaf in self.leaves.items()
            if len(leaf.shape) == 2 and not leaf.bias and matches(pattern, "/".join(leaf.names))
            if not any(matches(_NO_TABLE, name) for name in leaf.names[-2:])
        }
