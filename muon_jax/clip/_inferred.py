"""Attention layers by the names and shapes that routing knows."""

import re
from collections.abc import Iterable

from muon_jax.clip._targets import QKPart, QKTarget
from muon_jax.routing import _fused as fused
from muon_jax.routing import _plain as plain
from muon_jax.routing import _vocabulary as vocabulary
from muon_jax.routing._context import Leaf
from muon_jax.routing._route import as_stored
from muon_jax.trees._patterns import matches, words_of
from muon_jax.views._matrix_axes import MatrixAxes

_KERNELS = {
    "query": vocabulary.QUERY,
    "key": vocabulary.KEY,
    "kv": vocabulary.FUSED_KEY_VALUE,
    "qkv": f"{vocabulary.FUSED_QUERY_KEY_VALUE},query_key_value",
}
"""What a kernel makes, and the names of such layers."""

_FUSED = {"kv": fused.key_value, "qkv": fused.query_key_value}

_NORMS = frozenset(
    name
    for of in ("query", "key", "q", "k", "qk")
    for norm in ("norm", "ln", "layernorm", "rmsnorm")
    for name in (of + norm, norm + of)
)
"""Modules behind which the scale of a query or key kernel has no effect on the logits.

Names are in small letters, without underscores.
"""


def inferred_targets(leaves: Iterable[Leaf], nodes: Iterable[str]) -> dict[str, QKTarget]:
    """Returns a target for every layer with kernels for queries and keys, and no norm of these.

    Args:
      leaves: parameters.
      nodes: paths of all parameters and modules, those that a mask hides included.
    """
    normed = {layer for layer, name in map(_split, nodes) if name in _NORMS}
    kernels: dict[str, dict[str, str]] = {}
    for leaf in leaves:
        makes = _makes(leaf)
        if makes and len(leaf.layer_shape) > 1 and words_of(leaf.path) == leaf.words:
            depth = len(leaf.words) - len(leaf.parent)  # of `query/kernel`, or of `w_q`
            pieces = re.split(r"([/.])", leaf.path)
            layer, name = "".join(pieces[: -2 * depth]), pieces[1 - 2 * depth]
            kernels.setdefault(layer, {}).setdefault(makes, name)
    targets = {}
    for layer, by in sorted(kernels.items()):
        query, key = by.get("query"), by.get("key", by.get("kv"))
        if layer not in normed and query and key:
            targets[layer] = QKTarget(query=query, key=key)
        elif layer not in normed and "qkv" in by:
            targets[layer] = QKTarget(query=by["qkv"], key=QKPart(by["qkv"], part=1))
    return targets


def inferred_views(leaf: Leaf) -> list[MatrixAxes]:
    """Returns the candidate views of a kernel as stored; a single one is certain.

    An axis that sets queries, keys and values apart becomes the first of the columns, and is split.
    """
    makes = _makes(leaf)
    outcome = _FUSED[makes](leaf) if makes in _FUSED else plain.attention_input(leaf)
    outcome = outcome or plain.matrix(leaf)
    found = []
    for each in outcome if isinstance(outcome, tuple) else (outcome,):
        if isinstance(each, MatrixAxes):
            view = as_stored(each, leaf)
            batch = set(view.batch_axes(len(leaf.shape))) - set(leaf.stack)
            apart = [axis for axis in batch if leaf.shape[axis] > 1]
            split = leaf.shape[apart[0]] if apart else view.split
            found.append(MatrixAxes(view.rows, (*apart, *view.cols), split))
    return sorted(found, key=lambda view: view.split is None)


def _makes(leaf: Leaf) -> str | None:
    layer = "/".join(leaf.layer_path)
    return next((it for it, names in _KERNELS.items() if matches(f"*/{{{names}}}", layer)), None)


def _split(node: str) -> tuple[str, str]:
    """Splits a path into that of the layer and a name in small letters, without underscores."""
    cut = max(node.rfind("/"), node.rfind("."))
    return node[: max(cut, 0)], node[cut + 1 :].replace("_", "").lower()
