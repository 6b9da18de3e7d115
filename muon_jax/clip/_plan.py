"""Which parameters of a tree QK-Clip scales: the targets read against names and shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from muon_jax import _checks
from muon_jax.clip._targets import QKPart, QKTarget, Shape
from muon_jax.trees._paths import masked_paths, named_leaves
from muon_jax.trees._patterns import path_fits

_WHERE_HEADS_LIE = "Say by QKPart where the heads lie: head_axis, fused, stretch"

_NORMS = frozenset(
    name
    for of in ("query", "key", "q", "k", "qk")
    for norm in ("norm", "ln", "layernorm", "rmsnorm")
    for name in (of + norm, norm + of)
)
"""Modules behind which the scale of a query or key kernel has no effect on the logits.

Names are in small letters, without underscores.
"""


@dataclass(frozen=True)
class Scaling:
    """How a parameter takes part in the clip of a layer: by τ/S (`whole`) or by its root."""

    layer: str
    part: QKPart
    layer_axis: int | None
    whole: bool


@dataclass(frozen=True)
class Plan:
    """What QK-Clip does to one tree of parameters."""

    maxima: dict[str, Shape]
    """By layer, the shape of its largest logits: (heads,) or (layers, heads)."""
    scalings: dict[str, list[Scaling]]
    """By parameter; what is not named here is never scaled."""


def plan(targets: Mapping[str, QKTarget] | None, params: Any) -> Plan:
    """Finds the targets in the parameters; infers those of Flax attention for None."""
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(params)}
    nodes, hidden = _nodes(shapes), masked_paths(params)
    if targets is None:
        found = _inferred(shapes, nodes, normed=_normed(nodes | _nodes(hidden)))
    else:
        found = _matched(targets, shapes, nodes)
    maxima: dict[str, Shape] = {}
    scalings: dict[str, list[Scaling]] = {}
    for layer, target in found.items():
        _check_nothing_hidden(layer, target, hidden)
        maxima[layer], scaled = _read(layer, target, shapes)
        for name, scaling in scaled:
            scalings.setdefault(name, []).append(scaling)
    for name, parts in scalings.items():
        _check_disjoint(name, shapes[name], [scaling.part for scaling in parts])
    return Plan(maxima, scalings)


def _inferred(
    shapes: Mapping[str, Shape], nodes: set[str], normed: set[str]
) -> dict[str, QKTarget]:
    """Recognises (inputs, heads, head_dim) kernels `query` and `key` side by side, and `qkv`.

    One more axis in front is a scan's. A layer that normalises its queries or keys has no target:
    its logits do not depend on the scale of the kernels.
    """
    found = {}
    for layer in sorted(nodes - normed):
        query, key, qkv = (
            shapes.get(_join(layer, f"{name}/kernel"), ()) for name in ("query", "key", "qkv")
        )
        if len(query) in (3, 4) and len(key) == len(query):
            layer_axis = 0 if len(query) == 4 else None
            found[layer] = QKTarget(query="query", key="key", layer_axis=layer_axis)
        elif len(qkv) in (4, 5) and qkv[-3] == 3:
            layer_axis = 0 if len(qkv) == 5 else None
            of_query, of_key = (QKPart("qkv", stretch=(-3, i, i + 1)) for i in (0, 1))
            found[layer] = QKTarget(query=of_query, key=of_key, layer_axis=layer_axis)
    if not found:
        raise _checks.refused(
            "found no attention in the parameters: no kernels 'query' and 'key' of shape "
            "(inputs, heads, head_dim) nor 'qkv' of shape (inputs, 3, heads, head_dim) without "
            "a norm behind them",
            "Declare the layers, such as targets={'blocks/*/attn': QKTarget(query='q', key='k')}",
        )
    return found


def _matched(
    targets: Mapping[str, QKTarget], shapes: Mapping[str, Shape], nodes: set[str]
) -> dict[str, QKTarget]:
    found: dict[str, QKTarget] = {}
    for pattern, target in targets.items():
        path = target.parts()["query"].path
        layers = [
            node
            for node in sorted(nodes)
            if path_fits(pattern, node) and _join(node, path) in nodes
        ]
        if not layers:
            raise _checks.refused(
                f"targets[{pattern!r}] matches no layer that has a {path!r}",
                f"Name layers by their path in the parameters: {_checks.listed(shapes)}",
            )
        for layer in layers:
            if layer in found:
                raise _checks.refused(
                    f"two targets match the layer {layer!r}", "Leave it to one of them"
                )
            found[layer] = target
    return found


def _read(
    layer: str, target: QKTarget, shapes: Mapping[str, Shape]
) -> tuple[Shape, list[tuple[str, Scaling]]]:
    """Returns the shape of the layer's maxima, and how each of its parameters is scaled."""
    parts = target.parts()
    parameters = {role: _below(layer, part.path, shapes) for role, part in parts.items()}
    counts = {
        role: _head_count(layer, parts[role], parameters[role])
        for role in parts
        if role != "shared_key"
    }
    heads = counts["query"]
    if heads % counts.get("key", 1) or counts.get("rotary_query", heads) != heads:
        raise _checks.refused(
            f"the heads of {layer!r} do not go together: {counts}", _WHERE_HEADS_LIE
        )
    # A query that also meets the key of all heads has to bring the whole factor there.
    meets_shared = "shared_key" in parts and "rotary_query" not in parts
    own_key = counts.get("key") == heads and not meets_shared
    whole = {"query": not own_key, "rotary_query": True}
    if own_key:
        whole["key"] = False
    scaled = [
        (name, Scaling(layer, parts[role], target.layer_axis, whole[role]))
        for role in whole
        if role in parts
        for name in parameters[role]
    ]
    if target.layer_axis is None:
        return (heads,), scaled
    return (_layer_count(layer, target.layer_axis, scaled, shapes), heads), scaled


def _check_nothing_hidden(layer: str, target: QKTarget, hidden: Iterable[str]) -> None:
    """Refuses a mask over what a clip would scale, such as a bias beside its kernel."""
    bases = {_join(layer, part.path) for part in target.parts().values()}
    if missed := [name for name in hidden if not bases.isdisjoint(_ancestry(name))]:
        raise _checks.refused(
            f"a mask hides {_checks.listed(map(repr, missed))}, which the layer {layer!r} scales",
            "Let it see all parameters, as optax.chain(optax.multi_transform(...), clip_qk(...))",
        )


def _below(layer: str, path: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Finds the parameter at a path below the layer, or all parameters of a module there."""
    base = _join(layer, path)
    found = {name: shape for name, shape in shapes.items() if base in _ancestry(name)}
    if not found:
        siblings = [name for name in shapes if layer in _ancestry(name)]
        raise _checks.refused(
            f"the layer {layer!r} has no parameter {path!r}", f"It has {_checks.listed(siblings)}"
        )
    return found


def _head_count(layer: str, part: QKPart, parameters: Mapping[str, Shape]) -> int:
    for name, shape in parameters.items():
        if not part.fits(shape):
            raise _checks.refused(
                f"{name!r} of shape {shape} does not have the axes of {part}", _WHERE_HEADS_LIE
            )
    counts = {name: part.heads(shape) for name, shape in parameters.items()}
    if len(set(counts.values())) > 1:
        raise _checks.refused(
            f"the parameters of {layer!r} count different heads: {counts}", _WHERE_HEADS_LIE
        )
    return next(iter(counts.values()))


def _layer_count(
    layer: str, axis: int, scaled: list[tuple[str, Scaling]], shapes: Mapping[str, Shape]
) -> int:
    counts = set()
    for name, scaling in scaled:
        shape, part = shapes[name], scaling.part
        is_head_axis = part.viewed_axis(axis, shape) == part.head_axis % len(part.viewed(shape))
        counts.add(None if is_head_axis or axis >= len(shape) else shape[axis])
    if len(counts) > 1 or None in counts:
        raise _checks.refused(
            f"axis {axis} of the parameters of {layer!r} does not count layers: they are "
            f"{ {name: shapes[name] for name, _ in scaled} }",
            "Set layer_axis to the axis that the scan added, or to None",
        )
    return counts.pop()


def _check_disjoint(name: str, shape: Shape, parts: list[QKPart]) -> None:
    """Refuses parts of one parameter that overlap: these numbers would be scaled twice."""
    for i, one in enumerate(parts):
        for other in parts[:i]:
            apart = (
                one.fused == other.fused
                and one.stretch is not None
                and other.stretch is not None
                and one.stretch[0] % len(one.viewed(shape))
                == other.stretch[0] % len(one.viewed(shape))
                and (one.stretch[2] <= other.stretch[1] or other.stretch[2] <= one.stretch[1])
            )
            if not apart:
                raise _checks.refused(
                    f"{other} and {one} overlap in {name!r}", "Give each its own stretch"
                )


def _nodes(names: Iterable[str]) -> set[str]:
    """Returns all paths, and all paths above them."""
    return {node for name in names for node in _ancestry(name)}


def _normed(nodes: Iterable[str]) -> set[str]:
    """Returns the layers that normalise their queries or keys."""
    placed = (node.rpartition("/") for node in nodes)
    return {layer for layer, _, name in placed if name.replace("_", "").lower() in _NORMS}


def _ancestry(name: str) -> list[str]:
    """Lists a path and all paths above it, up to the root, which is the empty path."""
    names = name.split("/")
    return ["/".join(names[:depth]) for depth in range(len(names) + 1)]


def _join(layer: str, path: str) -> str:
    return f"{layer}/{path}" if layer else path
