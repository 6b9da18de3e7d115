"""`scale_by_muon`: momentum, its nearest orthogonal matrix, and a scale by shape."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from muon_jax import _checks
from muon_jax._types import Orthogonalizer, ScalarOrSchedule, Scale, common_dtype
from muon_jax.mesh._distribution import Distribute
from muon_jax.mesh._state import on_mesh_of, zeros_sharded_as
from muon_jax.routing._traced import AxesLike
from muon_jax.transforms._door import public
from muon_jax.transforms._ema import cast_saturating, check_storable, ema
from muon_jax.transforms._orthogonalize import resolve_views, tree_solver
from muon_jax.transforms._same_leaves import (
    check_gradients,
    check_same_leaves,
    mirrored,
    params_beside,
)
from muon_jax.transforms.precondition import PreconditionerLike, tree_preconditioner
from muon_jax.trees._paths import is_placeholder, named_leaves


class MuonState(NamedTuple):
    """The state of Muon: data only, no configuration.

    Attributes:
      count: number of updates so far.
      mu: moving average of the gradients, in the structure of the parameters; leaves without a view
        are `optax.MaskedNode()`.
      precondition: the state of the preconditioner; `()` without one.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: optax.Updates
    precondition: Any = ()


@public("scale_by_muon")
def scale_by_muon(
    *,
    momentum: ScalarOrSchedule = 0.9,
    nesterov: bool = True,
    orthogonalizer: Orthogonalizer | None = None,
    scale: Scale = "outputs",
    axes: AxesLike = None,
    momentum_dtype: Any = None,
    chunk_bytes: int | None = None,
    distribute: Distribute = "auto",
    precondition: PreconditionerLike = None,
) -> optax.GradientTransformation:
    r"""Replaces each gradient by the scaled nearest orthogonal matrix of its momentum.

    With gradient :math:`G`, momentum :math:`M`, decay :math:`\mu` and a factor :math:`s` that
    depends on the shape,

    .. math::
      M \leftarrow \mu M + (1 - \mu) G, \qquad
      U = s \cdot \operatorname{polar}(\mu M + (1 - \mu) G),

    where :math:`\operatorname{polar}(A S B^\top) = A B^\top` for a singular value decomposition.
    Without Nesterov, :math:`U = s \cdot \operatorname{polar}(M)`. The average equals heavy ball,
    :math:`M \leftarrow \mu M + G`, up to a factor that the polar factor ignores, so no bias
    correction is needed. Chain weight decay and the learning rate after it.

    Every leaf must have a view as matrices. Train the others with `optax.multi_transform` and
    `label_params`, or use `muon`; `optax.MaskedNode` passes through. Default rules need the shapes
    of all parameters, and raise an error if a mask hides a shape that they depend on, such as the
    bias of a convolution: pass `axes=muon_jax.matrix_axes(params)` in such a chain.

    Args:
      momentum: decay of the average, in [0, 1), or a schedule of it by step.
      nesterov: whether to use Nesterov momentum, as in the formula.
      orthogonalizer: from (batch, rows, cols) to the same shape; None is `newton_schulz()`.
      scale: size of the update. `"outputs"`: 0.2·√cols, the RMS of a typical AdamW update unless
        there are fewer outputs than inputs; `"match_rms"`: 0.2·√max(rows, cols), that RMS for every
        shape; `"keller"`: √max(1, cols/rows); `"spectral"`: √(cols/rows); `"update_norm"`: 0.2 over
        the measured RMS; `"none"`; `hidden_size(width)`; or any callable of (rows, cols), which are
        always (inputs, outputs).
      axes: views of leaves as matrices: a `MatrixAxes`, a prefix tree of them (None passes the
        gradient of a leaf on unchanged), a function from parameters to such a tree, or the result
        of `trace_axes`; None applies the default rules by path and shape.
      momentum_dtype: dtype in which the momentum is stored; None is that of the parameter. It is
        computed in float32 or wider.
      chunk_bytes: bound on the float32 size of the matrices that are orthogonalised at once, which
        bounds the extra memory; None chooses by backend.
      distribute: which device orthogonalises which matrix on a mesh. `"auto"`: the matrices are
        distributed over all devices; `"off"`: XLA decides; or a `Distribution`, which `shard_map`
        requires. On one device all are the same.
      precondition: divides the momentum before orthogonalisation: `"second_moment"` (Muon²),
        `"soap"` (SOAP-Muon), or a `SecondMoment` or `Soap` with other settings; None is plain Muon.

    Returns:
      A transformation whose updates have the shape and dtype of the gradients, the sharding of the
      parameters and singular values near the scale. They point along the gradient, not against it:
      chain it with `optax.scale_by_learning_rate`.

    Raises:
      TypeError or ValueError: at once for an unusable argument, and at `init` for parameters that
        are not floating-point or have no view, or if there are none.

    Examples:
      >>> import jax, muon_jax, optax
      >>> params = {"dense": {"kernel": jax.numpy.ones((4, 8))}}
      >>> tx = optax.chain(muon_jax.scale_by_muon(), optax.scale_by_learning_rate(0.02))
      >>> updates, state = tx.update(params, tx.init(params), params)

    References:
      Jordan et al., `Muon: An optimizer for hidden layers in neural networks
      <https://kellerjordan.github.io/posts/muon/>`_, 2024;
      Liu et al., `Muon is Scalable for LLM Training <https://arxiv.org/abs/2502.16982>`_, 2025
    """
    _checks.check_fraction("momentum", momentum)
    _checks.check_bool("nesterov", nesterov)
    momentum_dtype = _checks.check_float_dtype("momentum_dtype", momentum_dtype)
    solve = tree_solver(orthogonalizer, scale, chunk_bytes, distribute)
    divider = tree_preconditioner(precondition, distribute)

    def init(params: optax.Params) -> MuonState:
        if is_placeholder(params):
            kept = divider.placeholder(params) if divider else ()
            return MuonState(jnp.zeros([], jnp.int32), params, kept)
        _check_arrays(params)
        views = resolve_views(params, axes)
        if axes is None:
            _check_all_routed(params, views)
        zeros = mirrored(params, views, lambda leaf, _: zeros_sharded_as(leaf, momentum_dtype))
        kept = divider.init(params, views) if divider else ()
        return on_mesh_of(params, MuonState(jnp.zeros([], jnp.int32), zeros, kept))

    def update(
        updates: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        params = params_beside(updates, params)
        check_gradients(updates, state)
        updates = jax.tree.map(jnp.asarray, updates)  # NumPy's float64 becomes JAX's float
        gradients, treedef = jax.tree.flatten(updates)
        views = resolve_views(updates, axes)
        check_same_leaves(state.mu, mirrored(updates, views))
        decay = momentum(state.count) if callable(momentum) else momentum
        directions, averages = list[Array](), list[Any]()
        for gradient, average, view in zip(
            gradients, treedef.flatten_up_to(state.mu), views, strict=True
        ):
            direction = gradient
            if view is not None:
                direction, average = _accumulate(gradient, average, decay, nesterov)
            directions.append(direction)
            averages.append(average)
        like, kept = updates if params is None else params, state.precondition
        if divider:
            directions, kept = divider.apply(directions, updates, kept, state.count, views, like)
        solved = solve(treedef.unflatten(directions), views, like)
        new_state = MuonState(
            jnp.asarray(optax.safe_increment(state.count)),
            treedef.unflatten(averages),
            kept,
        )
        return jax.tree.map(lambda new, old: new.astype(old.dtype), solved, updates), new_state

    # Optax types every state as one union, which a precise signature does not match.
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _accumulate(
    gradient: Float[Array, "..."], average: Float[Array, "..."], decay: Any, nesterov: bool
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the direction to orthogonalise, and the moving average to store."""
    moved = ema(average, gradient, decay)
    direction = ema(moved, gradient, decay) if nesterov else moved
    either = common_dtype(gradient.dtype, average.dtype)
    return direction.astype(either), cast_saturating(moved, average.dtype)


def _check_arrays(params: optax.Params) -> None:
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    if not nodes:
        raise _checks.refused("the parameters hold no array", "Pass the tree to be trained")
    others = [
        f"{path} ({jnp.result_type(leaf)})"
        for path, leaf in named_leaves(params)
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    ]
    if others:
        raise _checks.refused(
            f"only real floating-point parameters have an update, not {_checks.listed(others)}",
            "Keep them out of the trained tree, or mask them",
            TypeError,
        )
    check_storable(params)


def _check_all_routed(params: optax.Params, views: list[Any]) -> None:
    others = [
        f"{path} {jnp.shape(leaf)}"
        for (path, leaf), view in zip(named_leaves(params), views, strict=True)
        if view is None
    ]
    if others:
        raise _checks.refused(
            f"no matrices by the default rules: {_checks.listed(others)}",
            "Use muon_jax.muon, or optax.multi_transform with muon_jax.label_params, to send them"
            " to another optimizer; or give their views by axes=",
        )
