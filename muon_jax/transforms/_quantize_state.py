"""Optimizer states in 8 or 16 bits, rounded at random so that no average drifts."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from muon_jax import _checks
from muon_jax.mesh._specs import with_explicit_as_auto
from muon_jax.mesh._state import on_mesh_of
from muon_jax.transforms._ema import cast_saturating
from muon_jax.transforms._record import record_notice
from muon_jax.trees._paths import named_leaves

_BLOCK = 64
"""Entries with one scale, at least: a scale of 16 bits adds 3 % to the codes."""

_LEVELS = 127
_SMALLEST = 4096
"""Entries of the smallest array that is stored in fewer bits, as in bitsandbytes."""


class Int8Blocks(NamedTuple):
    """An array in 8 bits: code · |code| · scale / 127², with one scale for each block.

    Attributes:
      codes: in the shape of the array.
      scales: largest absolute values, rounded up, of contiguous blocks along the last axis.
    """

    codes: Int[Array, "*shape size"]
    scales: Float[Array, "*shape blocks"]


class QuantizedState(NamedTuple):
    """The state of `quantize_state`.

    Attributes:
      count: number of updates so far.
      inner_state: that of the wrapped transformation, its large arrays in fewer bits.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: optax.OptState


@_checks.named("quantize_state")
def quantize_state(
    tx: optax.GradientTransformation,
    dtype: Literal["int8", "bfloat16"] = "int8",
    *,
    smallest: int = _SMALLEST,
) -> optax.GradientTransformationExtraArgs:
    r"""Stores the large arrays of an optimizer's state in 8 or 16 bits.

    `tx` computes in float32; its new state is rounded up or down at random, with probabilities that
    make the mean exact. Rounding to nearest would lose every change that is smaller than half a
    unit, so an average could stop before it reaches its value.

    With `"int8"` each block of 64 or more entries along the last axis has one scale, the largest
    absolute value a, and an entry x the code :math:`\operatorname{sign}(x) \sqrt{|x|/a} \cdot 127`.
    The square root gives small entries small steps. An entry other than zero never gets code 0, so
    Muon² and AdamW do not divide by zero. A parameter takes about 1.03 bytes for each array of its
    state, and 2 with `"bfloat16"`. Codes are sharded like the array.

    Args:
      tx: any optimizer or chain; not an average of parameters, whose changes are too small.
      dtype: `"int8"` or `"bfloat16"`.
      smallest: arrays with fewer entries stay as they are; `explain` lists them.

    Returns:
      A transformation with the updates of `tx` up to rounding; the same run rounds alike.

    Raises:
      TypeError or ValueError: for an unusable argument.

    Examples:
      >>> import muon_jax
      >>> tx = muon_jax.quantize_state(muon_jax.muon(1e-3))
      >>> state = tx.init({"dense": {"kernel": jnp.ones((64, 128))}})
      >>> sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / (4 * 64 * 128) < 0.26
      True

    References:
      Dettmers et al., `8-bit Optimizers via Block-wise Quantization
      <https://arxiv.org/abs/2110.02861>`_, 2022
    """
    _checks.check_transformation("tx", tx)
    _checks.check_choice("dtype", dtype, ("int8", "bfloat16"))
    _checks.check_positive_int("smallest", smallest)
    tx = optax.with_extra_args_support(tx)

    def is_large(leaf: Any) -> bool:
        return _is_floating(leaf) and leaf.size >= smallest and leaf.ndim > 0

    def is_stored(leaf: Any) -> bool:
        return _is_blocks(leaf) or is_large(leaf)

    def init(params: optax.Params) -> QuantizedState:
        inner = tx.init(params)
        kept = [
            path for path, leaf in named_leaves(inner) if _is_floating(leaf) and not is_large(leaf)
        ]
        if kept:
            record_notice(
                f"quantize_state: {len(kept)} arrays of fewer than {smallest} entries keep their "
                f"dtype: {_checks.listed(kept, 3)}"
            )
        empty = jax.tree.map(lambda leaf: _empty(leaf, dtype) if is_large(leaf) else leaf, inner)
        return on_mesh_of(params, QuantizedState(jnp.zeros([], jnp.int32), empty))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        old, structure = jax.tree.flatten(state.inner_state, is_leaf=_is_blocks)
        wide = [_decoded(leaf) if is_stored(leaf) else leaf for leaf in old]
        steps, inner = tx.update(updates, structure.unflatten(wide), params, **extra_args)
        # One key for each stored leaf, so that other leaves, such as counts, do not matter.
        key = jax.random.fold_in(jax.random.key(0), state.count)
        keys = iter(jax.random.split(key, sum(map(is_stored, old))))
        new = [
            _encoded(leaf, before, next(keys)) if is_stored(before) else leaf
            for leaf, before in zip(jax.tree.leaves(inner), old, strict=True)
        ]
        count = jnp.asarray(optax.safe_increment(state.count))
        return steps, QuantizedState(count, structure.unflatten(new))

    # Optax types every state as one union, which a precise signature does not match.
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def round_to_bfloat16(x: Float[Array, "*shape"], key: Key[Array, ""]) -> Float[Array, "*shape"]:
    """Rounds float32 up or down at random; the mean is exact, and finite entries stay finite."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    rounded = lax.bitcast_convert_type(bits, jnp.float32)
    largest = float(jnp.finfo(jnp.bfloat16).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(rounded, -largest, largest), x).astype(jnp.bfloat16)


def to_blocks(x: Float[Array, "*shape size"], blocks: int, key: Key[Array, ""]) -> Int8Blocks:
    """Rounds to one of the two nearest codes at random, with an exact mean above the first code."""
    parts = x.reshape(*x.shape[:-1], blocks, -1)
    # XLA's reduction on CPUs may lose a NaN.
    largest = jnp.where(jnp.isnan(parts).any(-1), jnp.nan, jnp.max(jnp.abs(parts), axis=-1))
    # Rounded up, because a smaller scale would shrink the largest entry at every step.
    scales = cast_saturating(largest * (1 + 2**-8), jnp.bfloat16)
    shares = jnp.abs(parts) / jnp.where(scales > 0, scales, 1).astype(x.dtype)[..., None]
    lower = jnp.floor(jnp.sqrt(shares) * _LEVELS)
    noise = (jax.random.bits(key, parts.shape, jnp.uint8).astype(x.dtype) + 0.5) / 256
    above = (shares * _LEVELS**2 - lower**2) > noise * (2 * lower + 1)
    codes = jnp.clip(lower + above, jnp.where(shares > 0, 1, 0), _LEVELS) * jnp.sign(parts)
    return Int8Blocks(codes.reshape(x.shape).astype(jnp.int8), scales)


def from_blocks(stored: Int8Blocks) -> Float[Array, "*shape size"]:
    """Returns the array in float32."""
    codes, scales = (each.astype(jnp.float32) for each in stored)
    parts = codes.reshape(*scales.shape, -1)
    return (parts * jnp.abs(parts) * (scales / _LEVELS**2)[..., None]).reshape(codes.shape)


def _empty(leaf: Array, dtype: str) -> Any:
    """Returns the stored form of an initial state, which is mostly zeros."""
    if dtype == "bfloat16":
        return leaf.astype(jnp.bfloat16)
    size = leaf.shape[-1]
    block = next(each for each in range(min(_BLOCK, size), size + 1) if size % each == 0)
    return to_blocks(leaf.astype(jnp.float32), size // block, jax.random.key(0))


def _decoded(stored: Any) -> Array:
    if not _is_blocks(stored):
        return stored.astype(jnp.float32)
    return with_explicit_as_auto(lambda *each: [from_blocks(Int8Blocks(*each))], stored[:1])(
        *stored
    )[0]


def _encoded(new: Array, old: Any, key: Array) -> Any:
    """Stores an array like the old one."""
    new = new.astype(jnp.float32)
    if not _is_blocks(old):
        run = with_explicit_as_auto(lambda *each: [round_to_bfloat16(*each)], [old])
        return run(new, key)[0]
    blocks = old.scales.shape[-1]
    run = with_explicit_as_auto(lambda x, key: list(to_blocks(x, blocks, key)), list(old))
    return Int8Blocks(*run(new, key))


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_blocks(node: Any) -> bool:
    return isinstance(node, Int8Blocks)
