"""Finds the axes that only repeat a layer: scanned, vmapped and pipelined stacks, experts.

Arrays do not say what their first axis is, but their neighbours do. A norm's gain is a vector, so
one of shape (layers, width) shows a stack, and so does every other leaf whose rank its name, its
bias or its counterpart fixes. Such a claim then covers the largest part of the tree around it in
which all shapes start with the same sizes: what was stacked together. Stacks along the second axis,
which some scanned models have, show in the same way.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

from muon_jax.routing._vocabulary import (
    ATTENTION_INPUT,
    ATTENTION_OUTPUT,
    DENSE,
    FUSED_KEY_VALUE,
    FUSED_QUERY_KEY_VALUE,
    LATENT_UP,
    NORM_VECTOR,
    STACK_CONTAINER,
    WEIGHT,
    biases_of,
    is_norm,
    place_of,
)
from muon_jax.trees._patterns import Words, matches
from muon_jax.views._matrix_axes import Shape, without_ones

_TABLE_OR_WEIGHT = f"{WEIGHT},embedding,embeddings"

Entries: TypeAlias = Sequence[tuple[Words, Shape]]
Claim: TypeAlias = tuple[Words, Shape]
"""A place in the tree, and the leading sizes that are stacked there."""


def stack_axes(
    leaves: Entries, known: Mapping[Words, Shape], hidden: Collection[Words]
) -> list[Shape]:
    """Lists the stack axes of every leaf.

    Args:
      leaves: words and shape of every leaf.
      known: leading sizes that are stacked for certain, by the words of a leaf.
      hidden: the words of leaves whose shapes a mask hides.
    """
    second = _stacked_second(leaves, hidden)
    without = [
        (words, shape[:1] + shape[2:] if is_second else shape)
        for (words, shape), is_second in zip(leaves, second, strict=True)
    ]
    stacks = []
    for count, is_second in zip(_leading_stacks(without, known, hidden), second, strict=True):
        only_second = is_second and not count
        stacks.append((1,) if only_second else tuple(range(count + is_second)))
    return stacks


def _leading_stacks(
    leaves: Entries, known: Mapping[Words, Shape], hidden: Collection[Words]
) -> list[int]:
    """Counts the leading stack axes of every leaf."""
    shapes = dict(leaves)
    common = _common_leading_sizes(
        [(words, shape[: max(0, len(shape) - _least_rank(words))]) for words, shape in leaves]
    )
    found: dict[Words, int] = {}
    for place, sizes in [*known.items(), *_by_rank(shapes, hidden), *_by_bias(shapes)]:
        for count in range(1, len(sizes) + 1):
            top = _highest(place, sizes[:count], common)
            found[top] = max(found.get(top, 0), count)
    for place, sizes in (*_by_attention(shapes), *_by_container(shapes)):
        top = _highest(place, sizes, common)
        if common[top][:1] == sizes:
            found.setdefault(top, 1)
    return [
        max(found.get(words[:depth], 0) for depth in range(len(words) + 1)) for words, _ in leaves
    ]


def _stacked_second(leaves: Entries, hidden: Collection[Words]) -> list[bool]:
    """Tells which leaves are stacked along their second axis.

    They are where a claim covers more of the tree by its second size than by its first, and no
    weight there is left with less than two axes.
    """
    common = _common_leading_sizes(leaves)
    seconds = _common_leading_sizes(
        [
            (words, shape[1:2] if len(shape) > 1 + matches(_TABLE_OR_WEIGHT, words[-1]) else ())
            for words, shape in leaves
        ]
    )
    shapes, tops = dict(leaves), set()
    for place, sizes in _by_rank(shapes, hidden):
        top = _highest(place, shapes[place][1:2], seconds)
        if len(top) < len(_highest(place, sizes[:1], common)):
            tops.add(top)
    return [any(words[:depth] in tops for depth in range(len(words))) for words, _ in leaves]


def _by_rank(shapes: Mapping[Words, Shape], hidden: Collection[Words]) -> Iterator[Claim]:
    """Leaves whose name fixes their rank have too many axes, and no bias speaks against it.

    Neither do the layers beside it in attention, where heads may have two axes: those of one group.
    """
    attention = _stacked_in_attention(shapes)
    for words, shape in shapes.items():
        rank = _rank_by_name(words, shape)
        bias = bias_beside(words, shapes)
        untold = rank == 2 and any(each in hidden for each in biases_of(words[:-1]))
        fits = (bias == shape if rank == 1 else bias[0] == shape[0]) if bias else not untold
        if rank and len(shape) > rank and fits:
            sizes = _shared(shape[:-rank], attention.get(place_of(words)[:-1], shape))
            if sizes:
                yield words, sizes


def _stacked_in_attention(shapes: Mapping[Words, Shape]) -> dict[Words, Shape]:
    """What the shapes of all inputs and outputs of an attention layer start with, by its place."""
    common: dict[Words, Shape] = {}
    for words, shape in shapes.items():
        place = place_of(words)
        if place and matches(f"{ATTENTION_INPUT},{ATTENTION_OUTPUT}", place[-1]):
            family, sizes = place[:-1], shape[:-2]
            common[family] = _shared(common.get(family, sizes), sizes)
    return common


def _rank_by_name(words: Words, shape: Shape) -> int | None:
    last, place = words[-1], place_of(words, f"{WEIGHT},{NORM_VECTOR}")
    layer = place[-1] if place else ""
    if is_norm(layer) and (place == words or matches(NORM_VECTOR, last)):
        return 1
    is_filter = len(shape) > 3 and (shape[0] == shape[1] or shape[-2] == shape[-1])
    if len(shape) < 3 or is_filter or not (place == words or matches(WEIGHT, last)):
        return None
    attends = any("att" in word for word in words)
    is_output = matches(ATTENTION_OUTPUT, layer) and attends
    if is_output or matches(f"{ATTENTION_INPUT},{LATENT_UP}", layer):
        return 3
    if attends or not matches(DENSE, layer):  # heads have an axis of their own in some attention
        return None
    return 3 if shape[-2] == 2 else 2  # (inputs, 2, outputs): gate and up fused


def _least_rank(words: Words) -> int:
    """Axes that no stack takes away: there may be as many experts as features."""
    place = place_of(words, f"{WEIGHT},{NORM_VECTOR}")
    if is_norm(place[-1] if place else ""):
        return 1
    return 2 if words[-1] == "kernel" else 0


def _by_bias(shapes: Mapping[Words, Shape]) -> Iterator[Claim]:
    """A bias has the output axes of its layer, so what it has besides is stacked."""
    for words, shape in shapes.items():
        lead, *rest = bias_beside(words, shapes) or (0,)
        outputs = without_ones(tuple(rest))
        first, last = shape[1 : 1 + len(outputs)], shape[len(shape) - len(outputs) :]
        explained = (lead, *rest) == shape[len(shape) - 1 - len(rest) :] or _holds(words, lead)
        fits = outputs and lead == shape[0] and outputs in (first, last)
        if len(shape) > 2 and fits and not explained:
            yield words, (lead,)


def _holds(words: Words, parts: int) -> bool:
    """Tells whether a layer of this name holds so many parts: query, key and value, or two."""
    place = place_of(words)
    fused = {2: FUSED_KEY_VALUE, 3: FUSED_QUERY_KEY_VALUE}.get(parts)
    return bool(place) and fused is not None and matches(fused, place[-1])


def bias_beside(words: Words, shapes: Mapping[Words, Shape]) -> Shape:
    """The shape of the bias beside a weight; nothing where there is none."""
    biases = biases_of(words[:-1]) if matches(WEIGHT, words[-1]) else ()
    return next((shapes[each] for each in biases if each in shapes), ())


def _by_attention(shapes: Mapping[Words, Shape]) -> Iterator[Claim]:
    """Queries (x, a, b) and outputs (x, b, c) fit together only as stacks of x matrices.

    The claim stands for the surroundings of the attention layer, which must be stacked likewise:
    heads stored first, (heads, width, size) and (heads, size, width), look the same from inside.
    """
    inputs, outputs = {}, {}
    for words, shape in shapes.items():
        if len(shape) == 3:
            place = place_of(words)
            if place and matches(ATTENTION_INPUT, place[-1]):
                inputs.setdefault(place[:-1], shape)
            elif place and matches(ATTENTION_OUTPUT, place[-1]):
                outputs.setdefault(place[:-1], shape)
    for family, (stack, _, size) in inputs.items():
        output = outputs.get(family, ())
        if family and output[:2] == (stack, size) and inputs[family][1:] != output[:2]:
            yield family[:-1], (stack,)


def _by_container(shapes: Mapping[Words, Shape]) -> Iterator[Claim]:
    """`layers` without numbered children holds a stack, if its matrices have a third axis."""
    for words, shape in shapes.items():
        if len(shape) == 3 and not any("conv" in word for word in words):
            for depth, word in enumerate(words[:-1], start=1):
                if matches(STACK_CONTAINER, word) and not words[depth].isdigit():
                    yield words[:depth], shape[:1]


def _common_leading_sizes(leaves: Entries) -> dict[Words, Shape]:
    """For every place in the tree, the sizes with which all shapes below it start."""
    common: dict[Words, Shape] = {}
    for words, shape in leaves:
        for depth in range(len(words) + 1):
            common[words[:depth]] = _shared(common.get(words[:depth], shape), shape)
    return common


def _shared(one: Shape, other: Shape) -> Shape:
    """The sizes with which both shapes start."""
    pairs = zip(one, other, strict=False)
    return tuple(size for size, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _highest(place: Words, sizes: Shape, common: Mapping[Words, Shape]) -> Words:
    """Climbs from a place as long as everything below starts with these sizes."""
    while place and common[place[:-1]][: len(sizes)] == sizes:
        place = place[:-1]
    return place
