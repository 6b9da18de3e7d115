"""Warns if a program runs on several devices and the types of its matrices name no mesh.

That happens if `in_shardings` alone places the inputs. The number of devices is known only at
lowering.
"""

import warnings
from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from muon_jax._checks import call_in_progress


def warn_if_distributed(array: Array) -> Array:
    """Returns the array; warns when it is lowered in a program of several devices."""
    return _noticed.bind(array, call=call_in_progress())


def _lowered(context: Any, operand: Any, *, call: str) -> list[Any]:
    devices = getattr(context.module_context.axis_context, "num_devices", 1)
    if devices > 1:
        warnings.warn(
            f"{call}: this program has {devices} devices, and the types of its inputs "
            "name no mesh, so that XLA may repeat the orthogonalisation on every device. Put the "
            "parameters on the mesh with jax.device_put, or compile inside jax.set_mesh(mesh), or "
            "pass distribute=Distribution.like(params); distribute='off' silences this.",
            stacklevel=2,
        )
    return [operand]


_noticed = Primitive("muon_jax_notice")
_noticed.def_impl(lambda array, *, call: array)
_noticed.def_abstract_eval(lambda array, *, call: array)
mlir.register_lowering(_noticed, _lowered)
ad.deflinear2(_noticed, lambda cotangent, _, *, call: [cotangent])
batching.defvectorized(_noticed)
