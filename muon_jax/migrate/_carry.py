"""Converts optimizer states, so that a run continues with another optimizer.

Each function takes an old state and a fresh one, and returns the fresh state with the moments and
the number of steps, and so the schedules, of the old one. Call it once, outside of `jit`. Both
optimizers must train each parameter with the same kind of optimizer; only `from_adamw` converts
moments of Adam to Muon's. `docs/how-to/migration.md` says how exactly a run continues.
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


@_checks.named("migrate.from_optax")
def from_optax(optax_state: Any, state: Any) -> Any:
    """Converts a state of `optax.contrib.muon` to one of muon_jax.

    Both store the same average of the gradients, without bias correction, so it is copied; the
    coefficients in the state of optax are dropped.

    Args:
      optax_state: the old state, of `optax.contrib.muon` or of its `scale_by_muon`.
      state: a fresh state: `tx.init(params)` of `muon_jax.muon`, of a recipe or of a chain with
        `scale_by_muon`.

    Returns:
      The fresh state with the moments and the number of steps of the old one.

    Raises:
      ValueError: a parameter has other moments, or another shape, in the other state; names its
        path.

    Examples:
      >>> import jax, optax
      >>> from muon_jax import migrate, recipes
      >>> params = {"kernel": jax.numpy.ones((4, 8))}
      >>> theirs = optax.contrib.muon(0.02).init(params)
      >>> state = migrate.from_optax(theirs, recipes.optax(0.02).init(params))
    """
    moments = _moments.read("optax_state", optax_state)
    remedy = (
        "Use an optimizer with the same routing, by recipes.optax or rules=[...], and AdamW for "
        "the rest; migrate.from_adamw converts moments of Adam to Muon's"
    )
    return _moments.carry(moments, state, ("optax_state", "state"), remedy)


@_checks.named("migrate.to_optax")
def to_optax(state: Any, optax_state: Any) -> Any:
    """Converts a state of muon_jax to one of `optax.contrib.muon`.

    Args:
      state: the old state.
      optax_state: a fresh state: `tx.init(params)` of `optax.contrib.muon`, or of its
        `scale_by_muon`. Its coefficients stay.

    Returns:
      The fresh state with the moments and the number of steps of the old one.

    Raises:
      ValueError: a parameter has other moments, or another shape, in the other state; names its
        path.

    Examples:
      >>> import jax, optax
      >>> from muon_jax import migrate, recipes
      >>> params = {"kernel": jax.numpy.ones((4, 8))}
      >>> state = recipes.optax(0.02).init(params)
      >>> theirs = migrate.to_optax(state, optax.contrib.muon(0.02).init(params))
    """
    moments = _moments.read("state", state)
    remedy = (
        "Give optax.contrib.muon the same routing, by muon_weight_dimension_numbers=; it trains "
        "all other parameters with AdamW"
    )
    return _moments.carry(moments, optax_state, ("state", "optax_state"), remedy)


@_checks.named("migrate.from_adamw")
def from_adamw(adamw_state: Any, state: Any, *, momentum: float = 0.9, b1: float = 0.9) -> Any:
    r"""Initialises Muon's momentum from the first moment of a run with AdamW.

    After :math:`t` steps the weights of AdamW's first moment sum to :math:`1 - b_1^t` and those of
    Muon's to :math:`1 - \mu^t`, so it is multiplied by the ratio. It averages over
    :math:`1 / (1 - b_1)` steps instead of :math:`1 / (1 - \mu)`. If both decays are equal, Muon
    continues as if it had trained from the start.

    Args:
      adamw_state: the old state, of `optax.adamw` or of any optimizer that contains Adam.
      state: a fresh state. Parameters that AdamW trains keep both moments.
      momentum: the decay of Muon, in [0, 1).
      b1: the decay of AdamW, in [0, 1).

    Returns:
      The fresh state with the moments and the number of steps of the old one.

    Raises:
      TypeError or ValueError: a decay is out of its range, or a parameter has no moments or another
        shape in the old state; names its path.

    Examples:
      >>> import jax, muon_jax, optax
      >>> from muon_jax import migrate
      >>> params = {"dense": {"kernel": jax.numpy.ones((4, 8)), "bias": jax.numpy.ones(8)}}
      >>> adamw = optax.adamw(3e-4).init(params)
      >>> state = migrate.from_adamw(adamw, muon_jax.muon(3e-4).init(params))
    """
    _check_decay("momentum", momentum)
    _check_decay("b1", b1)
    moments = dict(_moments.read("adamw_state", adamw_state))
    for path, wanted in _moments.read("state", state).items():
        known = moments.get(path)
        if isinstance(wanted, MuonMoment) and isinstance(known, AdamMoments):
            steps = known.steps
            ratio = (1 - momentum**steps) / (1 - b1**steps) if steps else 1.0
            first = jnp.asarray(known.first, wide_dtype(known.first.dtype))
            moments[path] = MuonMoment(steps, ratio * first)
    remedy = (
        "Use a state of a run with the same parameters, and a new optimizer that trains all "
        "parameters but Muon's with AdamW"
    )
    return _moments.carry(moments, state, ("adamw_state", "state"), remedy)


@_checks.named("migrate.from_torch")
def from_torch(
    state_dict: Any,
    state: Any,
    weights: Weights,
    *,
    axes: AxesLike,
    steps: int,
    heavy_ball: float | None = None,
) -> Any:
    """Converts a state of `torch.optim.Muon` to one of muon_jax.

    Buffers are transposed from (outputs, inputs) to the layout of the parameter. PyTorch is not
    needed.

    Args:
      state_dict: `optimizer.state_dict()`, with tensors in CPU memory or arrays.
      state: a fresh state. Parameters that AdamW trains keep its moments.
      weights: the number or name of the PyTorch parameter for the path of every matrix, or a list
        of them for a stack of layers.
      axes: as for `scale_by_muon`; `muon_jax.matrix_axes(params)` are those of `muon`.
      steps: the number of steps of the old run, which PyTorch does not store.
      heavy_ball: the decay μ of an optimizer whose buffer is the sum B ← μB + G, such as
        Moonlight's. None is for an average, as in torch.optim.Muon and KellerJordan/Muon.

    Returns:
      The fresh state with the momentum of the old one, and with `steps` in its schedules.

    Raises:
      TypeError or ValueError: a matrix is not in `weights`, a parameter is unknown or has no
        buffer, or its shape does not fit; names the path.

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
    _checks.check_positive_int("steps", steps)
    share = _share(heavy_ball)
    moments = dict(_moments.read("state", state))
    matrices = _torch_buffers.matrices_of(state, axes)
    for path, numbers in _torch_buffers.numbers_of(state_dict, weights, matrices).items():
        buffers = [_torch_buffers.buffer_of(state_dict, each, path) for each in numbers]
        leaf = _torch_buffers.to_leaf(buffers, matrices[path], path)
        moments[path] = MuonMoment(steps, share * leaf)
    return _moments.put(moments, state)


@_checks.named("migrate.to_torch")
def to_torch(
    state: Any,
    state_dict: Any,
    weights: Weights,
    *,
    axes: AxesLike,
    heavy_ball: float | None = None,
) -> dict[str, Any]:
    """Converts a state of muon_jax to one of `torch.optim.Muon`.

    Args:
      state: the old state.
      state_dict: `optimizer.state_dict()` of a fresh PyTorch optimizer.
      weights: as for `from_torch`.
      axes: as for `from_torch`.
      heavy_ball: as for `from_torch`.

    Returns:
      The state_dict with a float32 NumPy array as `momentum_buffer` of every matrix; convert them
      to tensors before `load_state_dict`.

    Raises:
      TypeError or ValueError: a matrix is not in `weights`, or a parameter is unknown; names the
        path.

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
    share = _share(heavy_ball)
    matrices = _torch_buffers.matrices_of(state, axes)
    buffers = {}
    for path, numbers in _torch_buffers.numbers_of(state_dict, weights, matrices).items():
        parts = _torch_buffers.from_leaf(matrices[path], len(numbers), path)
        buffers |= {number: part / share for number, part in zip(numbers, parts, strict=True)}
    return _torch_buffers.with_buffers(state_dict, buffers)


def _share(heavy_ball: float | None) -> float:
    """Returns the factor from a buffer to an average; heavy ball has B = M / (1 − μ)."""
    if heavy_ball is None:
        return 1.0
    _check_decay("heavy_ball", heavy_ball)
    return 1 - heavy_ball


def _check_decay(argument: str, value: Any) -> None:
    """Raises unless this is a number in [0, 1); a schedule has no single decay."""
    _checks.check_number(argument, value)
    _checks.check_fraction(argument, value)
