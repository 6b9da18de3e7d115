"""Which parameters of a tree QK-Clip scales: the targets, read against names and shapes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from muon_jax._checks import listed, refused
from muon_jax.clip._inferred import inferred_targets, inferred_views
from muon_jax.clip._projection import Layer, Projection
from muon_jax.clip._targets import QKTarget
from muon_jax.routing._context import Leaf
from muon_jax.routing._leaves import leaves_of
from muon_jax.trees._patterns import path_fits
from muon_jax.views._matrix_axes import MatrixAxes

Scaling: TypeAlias = tuple[str, Projection]
"""A layer whose factors scale a parameter, and how these lie in it."""


def plan(
    targets: Mapping[str, QKTarget] | None, params: Any
) -> tuple[dict[str, Layer], dict[str, list[Scaling]]]:
    """Returns the layers that have targets, and what scales each parameter.

    None infers the targets. A parameter that is not named is never scaled.
    """
    leaves, hidden = leaves_of(params)
    nodes = set[str]().union(*(_ancestry(leaf.path) for leaf in leaves))
    if targets is None:
        found = inferred_targets(leaves, nodes.union(*map(_ancestry, hidden)))
    else:
        found = _matched(targets, leaves, nodes)
    if not found:
        problem = "found no attention in the parameters: no module has kernels for queries and "
        problem += "keys, such as 'query' and 'key', 'q_proj' and 'k_proj', or 'qkv', and no norm"
        remedy = "such as targets={'blocks/*/attn': QKTarget(query='a', key='b')}"
        raise refused(problem, f"Declare the layers, {remedy}")
    layers = {layer: _read(layer, target, leaves, hidden) for layer, target in found.items()}
    scalings: dict[str, list[Scaling]] = {}
    for name, layer in layers.items():
        for each in layer.parts.values():
            for path in (each.path, *each.biases) if each.power else ():
                scalings.setdefault(path, []).append((name, each))
    for path, several in scalings.items():
        views, parts = {each.axes for _, each in several}, {each.part for _, each in several}
        if len(views) > 1 or len(parts) < len(several):
            problem = f"parts {sorted(parts)} of {', '.join(map(repr, views))} overlap in {path!r}"
            raise refused(problem, "Give all one view, and each its own part")
    return layers, scalings


def _matched(
    targets: Mapping[str, QKTarget], leaves: Sequence[Leaf], nodes: Iterable[str]
) -> dict[str, QKTarget]:
    found: dict[str, QKTarget] = {}
    for pattern, target in targets.items():
        path = target.parts()["query"].path
        fitting = (node for node in sorted(nodes) if path_fits(pattern, node))
        layers = [layer for layer in fitting if _below(layer, path, leaves)]
        if not layers:
            known = f"Name layers by their path in the parameters: {listed(x.path for x in leaves)}"
            raise refused(f"targets[{pattern!r}] matches no layer that has a {path!r}", known)
        if twice := sorted(found.keys() & set(layers)):
            raise refused(f"two targets match the layer {twice[0]!r}", "Leave it to one of them")
        found |= dict.fromkeys(layers, target)
    return found


def _read(layer: str, target: QKTarget, leaves: Sequence[Leaf], hidden: Sequence[str]) -> Layer:
    """Finds the projections of a layer, and the power of the factor that each takes."""
    declared = target.parts()
    for part in declared.values():
        if missed := [repr(path) for path in hidden if _is_below(layer, part.path, path)]:
            problem = f"a mask hides {listed(missed)}, which the layer {layer!r} scales"
            remedy = "as optax.chain(optax.multi_transform(...), clip_qk(...))"
            raise refused(problem, f"Let it see all parameters, {remedy}")
        if not _below(layer, part.path, leaves):
            siblings = listed(leaf.path for leaf in _below(layer, "", leaves))
            raise refused(
                f"the layer {layer!r} has no parameter {part.path!r}", f"It has {siblings}"
            )
    # A query that also meets the key of all heads has to bring the whole factor there.
    meets_shared = "shared_key" in declared and "rotary_query" not in declared
    stay = ("key", "shared_key") if meets_shared else ("shared_key",)
    read = {role: _projection(layer, target, role, leaves) for role in declared if role not in stay}
    own_key = "key" in read and read["key"].width == read["query"].width
    powers = {"query": 0.5, "key": 0.5} if own_key else {"key": 0}
    parts = {role: replace(each, power=powers.get(role, 1)) for role, each in read.items()}
    found = Layer(parts)
    if not found.has_heads(found.heads):
        heads = {role: each.heads or "unknown" for role, each in parts.items()}
        problem = f"the heads or layers of {layer!r} do not go together: {found} has heads {heads}"
        raise refused(problem, "Say by QKPart(path, MatrixAxes(...)) where they lie")
    return found


def _projection(layer: str, target: QKTarget, role: str, leaves: Sequence[Leaf]) -> Projection:
    """Reads the kernel and the biases of one role, the kernel by a view."""
    parts = target.parts()
    part = parts[role]
    below = _below(layer, part.path, leaves)
    kernel = max(below, key=lambda leaf: len(leaf.shape))
    views = [part.axes] if part.axes else inferred_views(kernel)
    view = views[0] if views else MatrixAxes(rows=-3, cols=(-2, -1))
    if len(views) != 1:
        declared = {each: replace(it, axes=it.axes or view) for each, it in parts.items()}
        line = f"targets={{{layer!r}: {replace(target, **declared)!r}}}"
        problem = f"cannot tell how {kernel.path!r} of shape {kernel.shape} holds its heads"
        raise refused(problem, f"Declare it, such as {line}")
    view.check(kernel.shape, path=kernel.path)
    biases = {leaf.path: leaf.shape for leaf in (*below, kernel.stored_bias) if leaf}
    del biases[kernel.path]
    found = Projection(kernel.path, kernel.shape, view, part.part, tuple(biases))
    if part.part >= len(found.widths):
        problem = f"{view!r} of {kernel.path!r} has no part {part.part}"
        raise refused(problem, "Give a view with a split that has it")
    if any(shape != found.bias_shape for shape in biases.values()):
        problem = f"of {biases} beside {kernel.path!r}, not all are biases of {found.bias_shape}"
        alone = kernel.path[len(layer) :].lstrip("/.")
        raise refused(problem, f"Name the kernel alone, {role}={alone!r}")
    return found


def _below(layer: str, path: str, leaves: Iterable[Leaf]) -> list[Leaf]:
    """Returns the parameter at a path below a layer, or all parameters of a module there."""
    return [leaf for leaf in leaves if _is_below(layer, path, leaf.path)]


def _is_below(layer: str, path: str, name: str) -> bool:
    rest = name[len(layer) + 1 :] if layer else name
    return layer in _ancestry(name) and path in _ancestry(rest)


def _ancestry(name: str) -> list[str]:
    """Lists a path and all paths above it, up to the root, which is the empty path."""
    return ["", *(name[: cut.start()] for cut in re.finditer(r"[/.]", name)), name]
