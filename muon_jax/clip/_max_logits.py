"""Attention logits: the largest of every head, block by block."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from muon_jax import _checks
from muon_jax._types import wide_dtype

_SEQUENCE, _HEADS = -3, -2  # axes of queries and keys (batch…, length, heads, head_dim)

_Start = Int[Array, ""]


@_checks.named("attention.max_attention_logits")
def max_attention_logits(
    query: Float[Array, "*batch queries heads head_dim"],
    key: Float[Array, "*batch keys groups head_dim"],
    *,
    mask: Num[Array, "..."] | Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    local_window_size: int | tuple[int, int] | None = None,
    segment_ids: Int[Array, "*batch queries"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    precision: lax.PrecisionLike = None,
    block_size: int = 512,
) -> Float[Array, "heads"]:
    """Measures the largest attention logit of every head, over the batch and all visible pairs.

    S_h = max over batch, i, j of scale · q_hi · k_hj, where query i may look at key j: the signed
    logit that the softmax receives, accumulated in float32. Blocks of `block_size` × `block_size`
    pairs are measured one after another, and those that `is_causal` or `local_window_size` rule
    out are skipped. It costs 2·T²·d FLOPs a head, about half of it when causal, and holds
    batch · heads · block_size² numbers. No gradient flows through. Additive biases are not part of
    S: no weight that could be clipped makes them.

    On a mesh the batch and the heads stay where they are; a sharded sequence is gathered. Inside
    your own `jax.shard_map` the result is local: follow it by `jax.lax.pmax`.

    Args:
      query: as it enters the product (rotated, normalised), unscaled.
      key: likewise. `groups` divides `heads`; query head h reads group h // (heads / groups).
      mask: zero or False where a query may not look; broadcastable to (batch…, heads, queries,
        keys). Padding needs no square: (batch, 1, 1, keys).
      is_causal: whether query i sees keys j ≤ i only.
      local_window_size: (left, right), or one number for both: query i sees
        i − left ≤ j ≤ i + right, as in `jax.nn.dot_product_attention`.
      segment_ids: a query sees only keys of its own segment.
      scale: positive factor on q·k; None stands for 1/√head_dim.
      soft_cap: c > 0 returns c·tanh(S/c), what the softmax of a soft-capped layer receives.
        Leave it out for `clip_qk`: only the logit before the cap is bilinear in the weights.
      precision: of the products, as in `jax.lax.dot`.
      block_size: queries, and keys, in one block.

    Returns:
      One maximum a head: −inf if all its pairs are masked, NaN if a visible logit is NaN.

    Raises:
      ValueError: shapes that do not fit together, or a number out of range.

    Examples:
      >>> query = jax.random.normal(jax.random.key(0), (2, 16, 4, 8))
      >>> max_attention_logits(query, query, is_causal=True).shape
      (4,)
    """
    query, key = (lax.stop_gradient(jnp.asarray(x)) for x in (query, key))
    mask, segment_ids = (x if x is None else jnp.asarray(x) for x in (mask, segment_ids))
    _check_shapes(query, key, mask, segment_ids)
    _check_numbers(scale, soft_cap, block_size)
    before, after = _reach(is_causal, local_window_size)

    query, key = _resharded(query, None, _SEQUENCE), _resharded(key, None, _SEQUENCE)
    queries, keys, heads = query.shape[_SEQUENCE], key.shape[_SEQUENCE], query.shape[_HEADS]
    query_block, key_block = min(block_size, queries), min(block_size, keys)
    if mask is not None:
        mask = _resharded(_of_rank(mask, query.ndim), None, -2, -1)
    if segment_ids is not None:
        segment_ids = _resharded(_of_rank(segment_ids, query.ndim - 2), None, -1)

    def visible(query_start: _Start, key_start: _Start) -> Bool[Array, "..."]:
        seen = jnp.array(True)
        i = query_start + jnp.arange(query_block)
        j = key_start + jnp.arange(key_block)
        distance = _of_rank(j[None, :] - i[:, None], query.ndim)
        if before is not None:
            seen &= distance >= -before
        if after is not None:
            seen &= distance <= after
        if mask is not None:
            rows = _cut(mask, query_start, query_block, -2)
            seen &= _cut(rows, key_start, key_block, -1) != 0
        if segment_ids is not None:
            of_queries = _cut(segment_ids, query_start, query_block, -1)[..., None, :, None]
            of_keys = _cut(segment_ids, key_start, key_block, -1)[..., None, None, :]
            seen &= of_queries == of_keys
        return seen

    def block_maxima(starts: tuple[_Start, _Start]) -> Float[Array, "heads"]:
        query_start, key_start = starts
        logits = jnp.einsum(
            "...qhd,...khd->...hqk",
            _cut(query, query_start, query_block, _SEQUENCE),
            _one_key_a_head(_cut(key, key_start, key_block, _SEQUENCE), query),
            precision=precision,
            preferred_element_type=wide_dtype(query.dtype),
        )
        logits = jnp.where(visible(query_start, key_start), logits, -jnp.inf)
        return jnp.max(logits, axis=(*range(logits.ndim - 3), -2, -1))

    starts = _visible_blocks(queries, keys, query_block, key_block, before, after)
    # The maximum commutes with every increasing function, so scale and cap wait until the end.
    maxima = jnp.max(lax.map(block_maxima, starts), axis=0)
    maxima *= query.shape[-1] ** -0.5 if scale is None else scale
    if soft_cap is None:
        return maxima
    return jnp.where(jnp.isneginf(maxima), maxima, soft_cap * jnp.tanh(maxima / soft_cap))


def _of_rank(x: Array, rank: int) -> Array:
    return jnp.reshape(x, (1,) * (rank - x.ndim) + x.shape)


def _cut(x: Array, start: _Start, size: int, axis: int) -> Array:
    """Takes a block along an axis, unless the axis only broadcasts."""
    return x if x.shape[axis] == 1 else lax.dynamic_slice_in_dim(x, start, size, axis)


def _one_key_a_head(
    key: Float[Array, "*batch keys groups head_dim"],
    query: Float[Array, "*batch queries heads head_dim"],
) -> Float[Array, "*batch keys heads head_dim"]:
    # Not jnp.repeat, which on an explicit mesh wants to be told a sharding.
    *batch, groups, head_dim = key.shape
    heads = query.shape[_HEADS]
    repeated = jnp.broadcast_to(key[..., None, :], (*batch, groups, heads // groups, head_dim))
    keys = repeated.reshape(*batch, heads, head_dim)
    return _resharded(keys, jax.typeof(query).sharding.spec[_HEADS], _HEADS)


def _resharded(x: Array, entry: Any, *axes: int) -> Array:
    """Shards axes of an array on an explicit mesh; on any other mesh the compiler does."""
    sharding = jax.typeof(x).sharding
    spec = list(sharding.spec)
    for axis in axes:
        spec[axis] = entry
    if tuple(spec) == tuple(sharding.spec):
        return x
    return jax.reshard(x, jax.NamedSharding(sharding.mesh, jax.P(*spec)))


def _reach(is_causal: bool, local_window_size: Any) -> tuple[int | None, int | None]:
    """Says how many positions before and after itself a query sees; None is all of them."""
    if local_window_size is None:
        return None, 0 if is_causal else None
    sides = np.asarray(local_window_size)
    if sides.dtype.kind != "i" or sides.shape not in ((), (2,)) or sides.min() < 0:
        raise _checks.invalid(
            "local_window_size",
            local_window_size,
            "give how many positions are seen to the left and to the right, whole numbers from 0",
        )
    before, after = np.broadcast_to(sides, 2).tolist()
    return before, 0 if is_causal else after


def _visible_blocks(
    queries: int, keys: int, query_block: int, key_block: int, before: int | None, after: int | None
) -> tuple[Int[np.ndarray, "blocks"], Int[np.ndarray, "blocks"]]:
    """Lists the (query, key) starts of all blocks in which some query sees some key.

    The last block of an axis ends with the axis and overlaps its neighbour: a maximum may meet a
    pair twice, and nothing needs padding.
    """
    query_starts = np.minimum(np.arange(0, queries, query_block), queries - query_block)[:, None]
    key_starts = np.minimum(np.arange(0, keys, key_block), keys - key_block)
    kept = np.ones((query_starts.size, key_starts.size), bool)
    if before is not None:
        kept &= key_starts + key_block - 1 >= query_starts - before
    if after is not None:
        kept &= key_starts <= query_starts + query_block - 1 + after
    of_query, of_key = np.nonzero(kept)
    return query_starts[of_query, 0].astype(np.int32), key_starts[of_key].astype(np.int32)


def _check_shapes(query: Array, key: Array, mask: Array | None, segment_ids: Array | None) -> None:
    fit = (
        query.ndim == key.ndim >= 3
        and query.shape[:-3] == key.shape[:-3]
        and query.shape[-1] == key.shape[-1]
        and query.size > 0
        and key.size > 0
        and query.shape[-2] % key.shape[-2] == 0
    )
    if not fit:
        raise _checks.refused(
            f"query {query.shape} and key {key.shape} do not fit together",
            "Give (batch…, queries, heads, head_dim) and (batch…, keys, groups, head_dim), none "
            "empty, where groups divides heads",
        )
    logits = (*query.shape[:-3], query.shape[-2], query.shape[_SEQUENCE], key.shape[_SEQUENCE])
    if mask is not None and not _broadcasts(mask.shape, logits):
        raise _checks.refused(
            f"mask {mask.shape} does not broadcast to the logits {logits}",
            "Give a mask over (batch…, heads, queries, keys)",
        )
    if segment_ids is None:
        return
    self_attention = query.shape[_SEQUENCE] == key.shape[_SEQUENCE]
    if not (self_attention and _broadcasts(segment_ids.shape, query.shape[:-2])):
        raise _checks.refused(
            f"segment_ids {segment_ids.shape} do not number the positions of query {query.shape} "
            f"and key {key.shape} alike",
            "Give (batch…, queries) for queries and keys of one length, or a mask",
        )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _check_numbers(scale: Any, soft_cap: Any, block_size: Any) -> None:
    _checks.check_positive_int("block_size", block_size)
    for name, value in (("scale", scale), ("soft_cap", soft_cap)):
        if value is not None and not isinstance(value, jax.Array) and not value > 0:
            raise _checks.invalid(name, value, "give a number above 0, or None")
