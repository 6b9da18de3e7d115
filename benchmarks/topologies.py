"""Compiles for accelerators that this machine does not have.

`pip install libtpu` installs the compiler for TPUs, and JAX's CUDA plugin has the compiler for
NVIDIA GPUs. Both compile from a description of the devices; nothing runs.
"""

import functools
import os
import time
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.experimental import topologies

from benchmarks.models import Layout, place
from muon_jax.diagnostics._hlo import Program, read_program

NO_TPU_HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Keeps libtpu from looking for a TPU, and from writing that it found none."""

H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132  clock_rate_ghz: 1.98  fpus_per_core: 128  device_address_bits: 64
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  device_memory_size: 84942979072  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  driver_version: "13.0.0"  runtime_version: "12.8.0"  compile_time_toolkit_version: "12.8.0"
}
"""
"""The sizes of one H100 SXM, in the fields of XLA's GpuTargetConfigProto."""


class UnavailableError(RuntimeError):
    """No compiler is installed for a topology, or it does not know the topology."""


@functools.cache
def devices_of(topology: str) -> tuple[Any, ...]:
    """Returns descriptions of the devices of a topology.

    Args:
        topology: such as `"v5e:2x4"`, `"v5p:2x2x2"` or `"v6e:16x16"`; `"v5e:1x1"` is one chip and
            `"h100:8"` eight GPUs of one host.

    Raises:
        UnavailableError: the compiler is not installed, or does not know the topology.
    """
    kind, _, shape = topology.partition(":")
    jax.config.update("jax_platforms", "cpu")
    try:
        if kind == "h100":
            jax.devices()  # finds the plugins
            options = {"topology": f"1x1x{shape}", "target_config": H100}
            return tuple(topologies.get_topology_desc(kind, "cuda", **options).devices)
        for name, value in NO_TPU_HERE.items():
            os.environ.setdefault(name, value)
        return tuple(topologies.get_topology_desc(topology, "tpu").devices)
    except NotImplementedError:
        remedy = "pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12"
        raise UnavailableError(f"{topology}: no CUDA compiler is installed; {remedy}") from None
    except RuntimeError as error:
        if "not installed" in str(error):
            remedy = "pip install --group tpu"
            raise UnavailableError(f"{topology}: no TPU compiler is installed; {remedy}") from None
        reason = str(error).splitlines()[0].rstrip(".")
        examples = "give one like v5e:2x4, v5p:2x2x2, v6e:16x16 or h100:8"
        raise UnavailableError(f"{topology}: no such topology ({reason}); {examples}") from None


@dataclass(frozen=True)
class Figures:
    """What the compiler reports about one program.

    Attributes:
        program: collectives and cycles.
        temporaries: bytes of a device besides its inputs and outputs.
        aliased: bytes of a device that outputs share with donated inputs.
        seconds: CPU time of tracing, lowering and compiling.
    """

    program: Program
    temporaries: int
    aliased: int
    seconds: float


def compile_step(tx: optax.GradientTransformation, params: Any, layout: Layout | None) -> Figures:
    """Compiles one update that is applied to the parameters; parameters and state are donated.

    Args:
        tx: the optimizer. State that several parameters share is sharded as by a compiled `init`.
        params: abstract parameters with the shardings of `models.place`.
        layout: the layout of the parameters, which the state has too.
    """
    sharding = jax.tree.leaves(params)[0].sharding
    where = sharding.mesh if layout else next(iter(sharding.device_set))
    state = _as_initialised(tx, params, place(jax.eval_shape(tx.init, params), where, layout))

    def step(gradients: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    stay = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(1, 2), out_shardings=stay)
    (device, *_) = sharding.device_set
    return compile_program(jitted, params, state, params, gpu=device.platform == "gpu")


def _as_initialised(tx: optax.GradientTransformation, params: Any, state: Any) -> Any:
    """Gives arrays without the name of a parameter the shardings of a compiled `init`."""
    names = {path[-1] for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    compiled = jax.jit(tx.init).lower(params).compile()

    def placed(path: Any, leaf: Any, sharding: Any) -> Any:
        if leaf.ndim < 2 or names & set(path):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, state, compiled.output_shardings)


def compile_program(jitted: Any, *arguments: Any, gpu: bool = False) -> Figures:
    """Compiles a jitted function for abstract arguments, after clearing JAX's caches."""
    jax.clear_caches()
    # Autotuning would run the candidates on a device, and there is none.
    options = {"xla_gpu_autotune_level": 0} if gpu else None
    began = time.process_time()
    compiled = jitted.lower(*arguments).compile(options)
    seconds = time.process_time() - began
    program, memory = read_program(compiled.as_text()), compiled.memory_analysis()
    assert program is not None
    return Figures(program, memory.temp_size_in_bytes, memory.alias_size_in_bytes, seconds)
