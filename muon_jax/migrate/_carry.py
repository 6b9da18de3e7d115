"""Carries the state of a run from one optimizer to another, so that training goes on.

Each function takes the state to leave and a fresh state to enter, which it returns filled: moments,
number of steps, and with it every schedule. Call it once, outside of `jit`. Both optimizers must
send each parameter to the same kind of optimizer; `from_adamw` alone carries parameters from Adam
over to Muon. What a continued run owes to the one it left stands in `docs/how-to/migration.md`.
"""

from typing import Any

import jax.numpy as jnp

from muon_jax import _checks
from muon_jax._types import wide_dtype
from muon_jax.migrate import _moments
from muon_jax.migrate import _torch as _torch_buffers
from muon_jax.migrate._moments import AdamMoments, MuonMoment
from muon_jax.migrate._torch import Weights
from muon_jax.transforms._orthogonalize import AxesLike

__all__ = ["from_adamw", "from_optax", "from_torch", "to_optax", "to_torch"]


def from_optax(optax_state: Any, state: Any) -> Any:
    """Goes on with muon_jax where `optax.contrib.muon` stopped.

    Both keep the same average of the gradients, without correction for bias, so that it passes as
    it is; the coefficients that optax keeps beside it are dropped.

    Args:
      optax_state: the state to leave, of `optax.contrib.muon` or of its `scale_by_muon`.
      state: a fresh state to enter: `tx.init(params)` of `muon_jax.muon`, of a recipe or of a chain
        with `scale_by_muon`.

    Returns:
      The fresh state with the moments and the number of steps of the other.

    Raises:
      ValueError: a parameter has other moments here than there, or another shape; names its path.

    Examples:
      >>> import jax, optax
      >>> from muon_jax import migrate, recipes
      >>> params = {"kernel": jax.numpy.ones((4, 8))}
      >>> theirs = optax.contrib.muon(0.02).init(params)
      >>> state = migrate.from_optax(theirs, recipes.optax(0.02).init(params))
    """
    call = "migrate.from_optax"
    moments = _moments.read(call, "optax_state", optax_state)
    return _moments.carry(
        call,
        moments,
        state,
        source="optax_state",
        target="state",
        remedy="Enter an optimizer with the same routing, by recipes.optax or rules=[...], and "
        "AdamW for the rest; migrate.from_adamw lets Muon take over what Adam trained",
    )


def to_optax(state: Any, optax_state: Any) -> Any:
    """Goes on with `optax.contrib.muon` where muon_jax stopped.

    Args:
      state: the state to leave.
      optax_state: a fresh state to enter: `tx.init(params)` of `optax.contrib.muon`, or of its
        `scale_by_muon`. Its coefficients stay.

    Returns:
      The fresh state with the moments and the number of steps of the other.

    Raises:
      ValueError: a parameter has other moments here than there, or another shape; names its path.

    Examples:
      >>> import jax, optax
      >>> from muon_jax import migrate, recipes
      >>> params = {"kernel": jax.numpy.ones((4, 8))}
      >>> state = recipes.optax(0.02).init(params)
      >>> theirs = migrate.to_optax(state, optax.contrib.muon(0.02).init(params))
    """
    call = "migrate.to_optax"
    moments = _moments.read(call, "state", state)
    return _moments.carry(
        call,
        moments,
        optax_state,
        source="state",
        target="optax_state",
        remedy="Give optax.contrib.muon the same routing, by muon_weight_dimension_numbers=; what "
        "it does not train with Muon it trains with AdamW",
    )


def from_adamw(adamw_state: Any, state: Any, *, momentum: float = 0.95, b1: float = 0.9) -> Any:
    r"""Starts Muon warm, from the first moment of a run with AdamW.

    After :math:`t` steps AdamW's first moment weighs the gradients by :math:`1 - b_1^t` in all and
    Muon's would by :math:`1 - \mu^t`; so it passes times the ratio. It looks back over
    :math:`1 / (1 - b_1)` steps instead of :math:`1 / (1 - \mu)`: where the two decays are equal,
    Muon goes on as if it had trained from the start.

    Args:
      adamw_state: the state to leave, of `optax.adamw` or of any optimizer with Adam inside.
      state: a fresh state to enter. Parameters that stay with AdamW keep both moments.
      momentum: that of the Muon to enter, in [0, 1).
      b1: that of the AdamW to leave, in [0, 1).

    Returns:
      The fresh state with the moments and the number of steps of the other.

    Raises:
      TypeError or ValueError: a decay is out of its range, or a parameter has no moments or another
        shape there; names its path.

    Examples:
      >>> import jax, muon_jax, optax
      >>> from muon_jax import migrate
      >>> params = {"dense": {"kernel": jax.numpy.ones((4, 8)), "bias": jax.numpy.ones(8)}}
      >>> adamw = optax.adamw(3e-4).init(params)
      >>> state = migrate.from_adamw(adamw, muon_jax.muon(3e-4).init(params))
    """
    call = "migrate.from_adamw"
    _check_decay(call, "momentum", momentum)
    _check_decay(call, "b1", b1)
    moments = dict(_moments.read(call, "adamw_state", adamw_state))
    for path, wanted in _moments.read(call, "state", state).items():
        known = moments.get(path)
        if isinstance(wanted, MuonMoment) and isinstance(known, AdamMoments):
            steps = known.steps
            ratio = (1 - momentum**steps) / (1 - b1**steps) if steps else 1.0
            first = jnp.asarray(known.first, wide_dtype(known.first.dtype))
            moments[path] = MuonMoment(steps, ratio * first)
    return _moments.carry(
        call,
        moments,
        state,
        source="adamw_state",
        target="state",
        remedy="Leave a run with the same parameters, and enter an optimizer that trains with "
        "AdamW what Muon does not take",
    )


def from_torch(
    state_dict: Any,
    state: Any,
    weights: Weights,
    *,
    axes: AxesLike,
    steps: int,
    heavy_ball: float | None = None,
) -> Any:
    """Goes on with muon_jax where `torch.optim.Muon` stopped.

    Buffers are turned from (outputs, inputs) to the layout of the parameter. PyTorch is not needed.

    Args:
      state_dict: `optimizer.state_dict()`, with tensors in CPU memory or arrays.
      state: a fresh state to enter. Parameters that AdamW trains keep the moments it has.
      weights: the number or name of the PyTorch parameter for the path of every matrix; for a
        stack of layers a list of them.
      axes: as for `scale_by_muon`; `muon_jax.matrix_axes(params)` are those of `muon`.
      steps: how many steps the other run took, which PyTorch does not note down.
      heavy_ball: the decay μ of an optimizer whose buffer is the sum B ← μB + G, such as
        Moonlight's. None is for an average, as in torch.optim.Muon and KellerJordan/Muon.

    Returns:
      The fresh state with the other's momentum, and with `steps` in its schedules.

    Raises:
      TypeError or ValueError: a matrix is not named, a parameter is unknown or has no buffer, or
        its shape does not fit; names the path.

    Examples:
      >>> import jax, muon_jax, numpy
      >>> from muon_jax import migrate
      >>> params = {"dense": {"kernel": jax.numpy.ones((4, 8))}}
      >>> theirs = {"state": {0: {"momentum_buffer": numpy.ones((8, 4))}},
      ...           "param_groups": [{"params": [0]}]}
      >>> state = migrate.from_torch(
      ...     theirs, muon_jax.muon(0.02).init(params), {"dense/kernel": 0},
      ...     axes=muon_jax.matrix_axes(params), steps=100)
    """
    call = "migrate.from_torch"
    _checks.check_positive_int(call, "steps", steps)
    share = _share(call, heavy_ball)
    moments = dict(_moments.read(call, "state", state))
    matrices = _torch_buffers.matrices_of(call, state, axes)
    for path, numbers in _torch_buffers.numbers_of(call, state_dict, weights, matrices).items():
        buffers = [_torch_buffers.buffer_of(call, state_dict, each, path) for each in numbers]
        leaf = _torch_buffers.to_leaf(call, buffers, matrices[path], path)
        moments[path] = MuonMoment(steps, share * leaf)
    return _moments.put(moments, state)


def to_torch(
    state: Any,
    state_dict: Any,
    weights: Weights,
    *,
    axes: AxesLike,
    heavy_ball: float | None = None,
) -> dict[str, Any]:
    """Goes on with `torch.optim.Muon` where muon_jax stopped.

    Args:
      state: the state to leave.
      state_dict: `optimizer.state_dict()` of a fresh PyTorch optimizer.
      weights: as for `from_torch`.
      axes: as for `from_torch`.
      heavy_ball: as for `from_torch`.

    Returns:
      The state_dict with a float32 NumPy array as `momentum_buffer` of every matrix; make tensors
      of them before `load_state_dict`.

    Raises:
      TypeError or ValueError: a matrix is not named, or a parameter is unknown; names the path.

    Examples:
      >>> import jax, muon_jax
      >>> from muon_jax import migrate
      >>> params = {"dense": {"kernel": jax.numpy.ones((4, 8))}}
      >>> theirs = migrate.to_torch(
      ...     muon_jax.muon(0.02).init(params), {"state": {}, "param_groups": [{"params": [0]}]},
      ...     {"dense/kernel": 0}, axes=muon_jax.matrix_axes(params))
      >>> theirs["state"][0]["momentum_buffer"].shape
      (8, 4)
    """
    call = "migrate.to_torch"
    share = _share(call, heavy_ball)
    matrices = _torch_buffers.matrices_of(call, state, axes)
    buffers = {}
    for path, numbers in _torch_buffers.numbers_of(call, state_dict, weights, matrices).items():
        parts = _torch_buffers.from_leaf(call, matrices[path], len(numbers), path)
        buffers |= {number: part / share for number, part in zip(numbers, parts, strict=True)}
    return _torch_buffers.with_buffers(state_dict, buffers)


def _share(call: str, heavy_ball: float | None) -> float:
    """The factor from a buffer to an average: B = M / (1 − μ) where both began at zero."""
    if heavy_ball is None:
        return 1.0
    _check_decay(call, "heavy_ball", heavy_ball)
    return 1 - heavy_ball


def _check_decay(call: str, argument: str, value: Any) -> None:
    """Refuses a schedule too: what was averaged so far has one decay."""
    _checks.check_number(call, argument, value)
    _checks.check_fraction(call, argument, value)
