"""Identities through which shardings propagate in one direction alone.

A constraint on a result tells the compiler something of its operands too: it would compute the
momentum in the sharding in which matrices travel to their owners, and the new parameters in that in
which they come back. No constraint of JAX says "as it was" on Auto axes; Shardy's
`propagation_barrier` does.
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
      direction: `"forward"`: the sharding of the operand reaches the result, not the reverse;
        `"backward"`: the sharding that the result needs reaches the operand, not the reverse.
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
