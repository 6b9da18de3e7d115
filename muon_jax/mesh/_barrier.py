"""Identity operations through which shardings propagate in one direction only.

XLA propagates a sharding constraint to the operands as well. Without a barrier it would compute the
momentum in the sharding that distributes matrices over devices, and the new parameters in the
sharding of the results. JAX has no constraint that keeps an unknown sharding on Auto axes; Shardy
has `propagation_barrier`.
"""

from typing import Any, Literal

import jax
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import sdy
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


def propagating(array: Array, direction: Literal["forward", "backward"]) -> Array:
    """Returns the array.

    Args:
      array: any array.
      direction: `"forward"` propagates shardings from the operand to the result only, `"backward"`
        from the result to the operand only.
    """
    return _propagating.bind(array, direction=direction)


def _lowered(context: Any, operand: ir.Value, *, direction: str) -> list[ir.Value]:
    del context
    if not jax.config.jax_use_shardy_partitioner:  # pyright: ignore[reportAttributeAccessIssue]
        return [operand]
    allowed = getattr(sdy.PropagationDirection, direction.upper())
    return [sdy.propagation_barrier(operand, allowed)]


_propagating = Primitive("propagating")
_propagating.def_impl(lambda array, *, direction: array)
_propagating.def_abstract_eval(lambda array, *, direction: array)
mlir.register_lowering(_propagating, _lowered)
ad.deflinear2(_propagating, lambda cotangent, _, *, direction: [cotangent])
batching.defvectorized(_propagating)
