"""The largest attention logit of every head, which `muon_jax.clip_qk` reads.

Softmax attention turns unstable when a logit q·k/√d grows without bound. `max_attention_logits`
measures it in blocks, so the T×T matrix is never held. `reporting` puts the measurement around the
`attention_fn` of a Flax layer, and `collect_max_logits` brings what the layers reported into the
form that `clip_qk` takes. Nothing here imports Flax: a layer hands itself over and is asked to
`sow`, which NNX and Linen spell alike.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from muon_jax import _checks
from muon_jax.clip._max_logits import max_attention_logits as max_attention_logits

_REPORT = "max_logits"
_COLLECTION = "intermediates"  # what Flax, NNX and Linen, calls the values that layers report
_PASSED_BY_FLAX = ("mask", "is_causal", "precision")


@_checks.named("attention.reporting")
def reporting(attention_fn: Callable[..., Array], **options: Any) -> Callable[..., Array]:
    """Wraps an `attention_fn` of Flax so that the layer also reports its largest logits.

    The layer computes what it computed before. Called with `sow_weights=True`, Flax's own switch
    for handing the layer to its `attention_fn`, it sows (heads,) maxima named `max_logits` among
    the intermediates; no attention weights are sown, so the fused attention stays in use. A layer
    called several times reports the largest of all calls.

    Args:
      attention_fn: such as `nnx.dot_product_attention` or `nn.dot_product_attention`.
      options: for `max_attention_logits`, where the attention has what Flax does not pass on:
        `local_window_size`, `segment_ids`, `scale`, `block_size`. Leave `soft_cap` out.

    Returns:
      A function to give as `attention_fn=` to `nnx.MultiHeadAttention` or
      `nn.MultiHeadDotProductAttention`. `collect_max_logits` reads the reports.

    Examples:
      >>> from flax import nnx
      >>> attend = reporting(nnx.dot_product_attention)
      >>> layer = nnx.MultiHeadAttention(4, 8, attention_fn=attend, decode=False, rngs=nnx.Rngs(0))
      >>> forward = nnx.capture(lambda layer, x: layer(x, sow_weights=True), nnx.Intermediate)
      >>> _, intermediates = forward(layer, jnp.ones((1, 16, 8)))
    """
    if not callable(attention_fn):
        remedy = "give a function such as flax.nnx.dot_product_attention"
        raise _checks.invalid("attention_fn", attention_fn, remedy, TypeError)

    # `wraps` keeps the signature, by which Linen decides what to pass.
    @functools.wraps(attention_fn)
    def reported(
        query: Array, key: Array, value: Array, *, module: Any = None, **keywords: Any
    ) -> Array:
        if module is not None:
            shared = {name: keywords[name] for name in _PASSED_BY_FLAX if name in keywords}
            maxima = max_attention_logits(query, key, **(shared | options))
            module.sow(
                _COLLECTION, _REPORT, maxima, init_fn=lambda: -jnp.inf, reduce_fn=jnp.maximum
            )
        return attention_fn(query, key, value, **keywords)

    return reported


@_checks.named("attention.collect_max_logits")
def collect_max_logits(intermediates: Any) -> dict[str, Float[Array, "..."]]:
    """Gathers what the layers of a Flax model reported, as `clip_qk` takes it.

    Args:
      intermediates: what `nnx.capture(…, nnx.Intermediate)` returned beside the result, or the
        variables that Linen's `apply(…, mutable=["intermediates"])` returned.

    Returns:
      The maxima by the path of their layer, such as `blocks/0/attn`: (heads,), or
      (layers, heads) from layers under a scan. Of a layer that was called several times, the
      largest.

    Raises:
      ValueError: no layer reported.

    Examples:
      >>> collect_max_logits({"attn": {"max_logits": jnp.ones(4)}})
      {'attn': Array([1., 1., 1., 1.], dtype=float32)}
    """
    maxima = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(intermediates):
        names = _checks.path_name(path).removeprefix(f"{_COLLECTION}/").split("/")
        if _REPORT in names:
            layer = "/".join(names[: names.index(_REPORT)])
            # Linen's `sow` keeps one value for each call of the layer.
            maxima[layer] = jnp.maximum(maxima[layer], leaf) if layer in maxima else leaf
    if not maxima:
        raise _checks.refused(
            f"no layer reported {_REPORT!r}",
            "Build the layers with attention_fn=reporting(...), call them with sow_weights=True, "
            "and capture the intermediates",
        )
    return maxima
