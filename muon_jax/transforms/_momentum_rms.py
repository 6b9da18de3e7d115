"""Momentum of unit RMS, for leaves that are not matrices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Inexact

from muon_jax import _checks
from muon_jax.mesh._state import zeros_sharded_as
from muon_jax.polar._normalize import nonzero, to_order_of_one
from muon_jax.transforms._door import public
from muon_jax.transforms._ema import cast_saturating, check_storable, ema
from muon_jax.transforms._same_leaves import check_gradients, check_same_leaves


class MomentumRmsState(NamedTuple):
    """The state of `scale_by_momentum_rms`.

    Attributes:
      mu: moving average of the gradients, in the structure of the parameters.
    """

    mu: optax.Updates


@public("scale_by_momentum_rms")
def scale_by_momentum_rms(
    *, momentum: float = 0.9, max_norm: float | None = None, eps: float = 1e-8
) -> optax.GradientTransformation:
    r"""Divides the momentum of every leaf by its root mean square.

    .. math::
      M \leftarrow \mu M + (1 - \mu) G, \qquad U = M / (\operatorname{rms}(M) + \epsilon)

    This is to a vector what orthogonalisation is to a matrix: the update keeps the direction of the
    momentum and has an RMS of one. The state is one copy of the parameters; AdamW needs two. Unlike
    AdamW it does not scale entries separately, so it suits norms and biases better than embeddings,
    whose rows get gradients at very different frequencies.

    Args:
      momentum: decay of the average, in [0, 1).
      max_norm: bound on the Euclidean norm of each leaf's update, so that large leaves do not take
        larger steps than small ones; None is no bound.
      eps: added to the root mean square, at least 0; momenta far below it give small updates.

    Returns:
      A transformation whose updates have the shape and dtype of the gradients and point along them.

    Raises:
      TypeError or ValueError: if an argument is out of its range.

    Examples:
      >>> import jax, muon_jax
      >>> tx = muon_jax.scale_by_momentum_rms(momentum=0.0)
      >>> gradient = jax.numpy.array([3.0, -3.0])
      >>> updates, _ = tx.update(gradient, tx.init(gradient))
      >>> [round(float(x), 3) for x in updates]
      [1.0, -1.0]
    """
    for name, value in (("momentum", momentum), ("max_norm", max_norm), ("eps", eps)):
        _checks.check_no_schedule(name, value)
    _checks.check_fraction("momentum", momentum)
    _checks.check_non_negative("eps", eps)
    if max_norm is not None:
        _checks.check_non_negative("max_norm", max_norm)

    def init(params: optax.Params) -> MomentumRmsState:
        check_storable(params)
        return MomentumRmsState(jax.tree.map(zeros_sharded_as, params))

    def update(
        updates: optax.Updates, state: MomentumRmsState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MomentumRmsState]:
        del params
        check_gradients(updates, state)
        updates = jax.tree.map(jnp.asarray, updates)  # NumPy's float64 becomes JAX's float
        check_same_leaves(state.mu, updates)
        average = jax.tree.map(lambda old, new: ema(old, new, momentum), state.mu, updates)
        scaled = jax.tree.map(
            lambda leaf, like: _unit_rms(leaf, eps, max_norm).astype(like.dtype), average, updates
        )
        kept = jax.tree.map(lambda leaf, like: cast_saturating(leaf, like.dtype), average, state.mu)
        return scaled, MomentumRmsState(kept)

    # Optax types every state as one union, which a precise signature does not match.
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _unit_rms(
    leaf: Inexact[Array, "..."], eps: float, max_norm: float | None
) -> Inexact[Array, "..."]:
    if leaf.size == 0:
        return leaf
    # Squares of large gradients would overflow, and those of small ones underflow.
    power = to_order_of_one(jnp.max(jnp.abs(leaf)))
    unit = leaf * power
    size = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(unit)))) + eps * power
    scaled = unit / nonzero(size)
    if max_norm is not None:
        norm = jnp.linalg.norm(scaled)
        scaled = scaled * jnp.minimum(1.0, max_norm / nonzero(norm))
    return scaled
