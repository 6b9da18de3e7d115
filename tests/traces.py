"""Helpers for tests of `trace_axes`, and a short notation for its results.

A view is `rows|cols` with `/` before a split, as in `routes`. Axes of size one are left out, and
`i` marks an interleaved split. A parameter without a view is shown as the name of its rule. `?`
marks results that come from the parameter's name, because the loss does not decide.
"""

import jax
import jax.numpy as jnp

from muon_jax import trace_axes


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def in_short(axes, shape):
    """Returns a view in short notation, or `-` for none."""
    if axes is None:
        return "-"
    rows, cols = (
        ",".join(str(axis) for axis in sorted(group) if shape[axis] > 1)
        for group in (axes.rows, axes.cols)
    )
    split = axes.split
    parts = "" if split is None else f"/{split.parts}".replace(" ", "")
    return f"{rows}|{cols}{parts}{'i' if split and split.interleaved else ''}"


def shown(leaf):
    """Returns the result for one parameter in short notation."""
    answer = leaf.rule if leaf.axes is None else in_short(leaf.axes, leaf.shape)
    return answer if leaf.read else f"?{answer}"


def answers(loss, params, *args, **kwargs):
    """Returns the results of `trace_axes` for all parameters except vectors."""
    return in_words(trace_axes(loss, params, *args, **kwargs))


def in_words(traced):
    """Returns the results for all parameters except vectors, in short notation."""
    return {
        leaf.path: shown(leaf)
        for leaf in traced.leaves
        if not (leaf.read and leaf.rule == "vector")
    }


def cross_entropy(logits, labels):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -jnp.mean(picked)
