"""Many devices: the mesh, the shardings of parameters and batches, and the processes.

One process with virtual CPU devices, several processes on this machine and the hosts of a cluster
all run the same code.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from trainer.errors import UsageError

AXES = ("data", "replica", "fsdp", "tensor")
AGREE_EVERY = 10  # steps between the checks whether any process wants to stop

# After Shoeybi et al. 2019, "Megatron-LM": the first layer of a pair is sharded along its outputs
# and the second along its inputs, so that only the pair's result is summed over devices. Experts
# are sharded along the axis of experts, so that "tensor" splits no expert.
TENSOR_AXIS = {
    "experts": 0,
    "query": 1,
    "key": 1,
    "value": 1,
    "gate": 1,
    "up": 1,
    "out": 0,
    "down": 0,
    "head": 1,
}


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """The devices to train on."""

    mesh: str | None = None
    """Devices along each axis, such as fsdp=8, fsdp=4,tensor=2 or replica=2,fsdp=4. A CPU is
    split into that many virtual devices. Default: one device."""
    processes: int = 1
    """How many processes share the mesh. They are started on this machine unless --coordinator is
    given."""
    process_id: int | None = None
    """Index of this process, from 0; on a cluster, every host gives its own."""
    coordinator: str | None = None
    """Address of process 0, host:port; "auto" lets JAX get it from Slurm, Open MPI or the TPU
    pod."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UsageError(f"--processes {self.processes}: give at least 1")
        if self.mesh is None and (self.processes > 1 or self.coordinator):
            raise UsageError("several processes need a --mesh to share, such as --mesh fsdp=8")
        if self.process_id is not None and self.coordinator is None:
            raise UsageError("--process-id needs --coordinator host:port, the same on every host")
        if self.mesh and len(self.sizes) < len(self.mesh.split(",")):
            raise UsageError(f"--mesh {self.mesh}: name every axis once")

    @property
    def sizes(self) -> dict[str, int]:
        """The devices along each axis of `mesh`, by name."""
        sizes = {}
        for part in filter(None, (self.mesh or "").split(",")):
            axis, _, size = part.partition("=")
            if axis not in AXES or not size.isdecimal() or int(size) < 1:
                raise UsageError(
                    f"--mesh {self.mesh}: write axis=devices, separated by commas; "
                    f"the axes are {', '.join(AXES)}"
                )
            sizes[axis] = int(size)
        return sizes

    @property
    def must_spawn(self) -> bool:
        """Whether this process must start the others instead of training."""
        return self.processes > 1 and self.coordinator is None


@dataclasses.dataclass(frozen=True)
class Devices:
    """A mesh, or None for the one device that JAX chooses."""

    mesh: Mesh | None = None

    @classmethod
    def start(cls, config: DeviceConfig) -> "Devices":
        """Joins the other processes and makes the mesh; call it before anything is computed.

        Raises:
            UsageError: JAX has another number of devices than the mesh needs.
        """
        if config.mesh is None:
            return cls()
        count = math.prod(config.sizes.values())
        if count % config.processes:
            raise UsageError(
                f"--mesh {config.mesh} has {count} devices, which {config.processes} processes "
                "do not divide evenly"
            )
        _make_cpu_devices(count // config.processes)
        if config.coordinator:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            named = {} if config.coordinator == "auto" else _named(config)
            jax.distributed.initialize(**named)
        if jax.device_count() != count:
            raise UsageError(
                f"--mesh {config.mesh} needs {count} devices, and JAX has {jax.device_count()} "
                f"({jax.default_backend()})"
            )
        types = (AxisType.Auto,) * len(config.sizes)
        return cls(jax.make_mesh(tuple(config.sizes.values()), tuple(config.sizes), types))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return jax.process_index() == 0

    def place(self, tree: Any) -> Any:
        """Puts every array of a model or its optimizer on the mesh, unless it is there already."""
        if self.mesh is None:
            return tree
        mesh = self.mesh

        def placed(path: Any, leaf: Any) -> Any:
            if isinstance(leaf.sharding, NamedSharding):
                return leaf
            names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
            return _from_host(leaf, NamedSharding(mesh, parameter_spec(names, leaf.shape, mesh)))

        return jax.tree_util.tree_map_with_path(placed, tree)

    def place_batch(self, batch: Any) -> Any:
        """Shards the rows of a batch over all mesh axes except "tensor".

        Every process must have the whole batch.

        Raises:
            UsageError: the rows do not divide evenly.
        """
        if self.mesh is None:
            return batch
        mesh = self.mesh
        axes = tuple(axis for axis in mesh.axis_names if axis != "tensor")
        parts = math.prod(mesh.shape[axis] for axis in axes)

        def placed(array: Any) -> jax.Array:
            if len(array) % parts:
                raise UsageError(
                    f"a batch of {len(array)} does not divide evenly over {parts} "
                    "devices; give another --batch-size or --mesh"
                )
            return _from_host(array, NamedSharding(mesh, P(axes)))

        return jax.tree.map(placed, batch)

    def shardings(self, state: Any) -> Any:
        """Returns the shardings of the state, which a step must preserve."""
        return None if self.mesh is None else jax.tree.map(lambda leaf: leaf.sharding, state)

    def gather(self, tree: Any) -> Any:
        """Returns a full copy on this process's first device, for work on one device."""
        if self.mesh is None:
            return tree
        whole = jax.jit(lambda same: same, out_shardings=NamedSharding(self.mesh, P()))(tree)
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)

    def settle(self, measured: Any) -> Any:
        """Waits for the result of a program, if several processes share a mesh of CPUs.

        Otherwise two programs could run at once. Each process could then start their collectives in
        another order, and the processes would wait for each other forever.
        """
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(measured)
        return measured

    def wait(self, why: str) -> None:
        """Waits until every process has called this method."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(why)

    def agree(self, step: int, stop: bool) -> bool:
        """Returns whether to stop at a step.

        One process stops if `stop` is true. Several processes check every `AGREE_EVERY` steps
        together, and stop if `stop` is true on any of them.
        """
        if jax.process_count() == 1:
            return stop
        if step % AGREE_EVERY:
            return False
        return bool(multihost_utils.process_allgather(np.array([stop])).any())


ONE_DEVICE = Devices()


def parameter_spec(names: list[str], shape: tuple[int, ...], mesh: Mesh) -> P:
    """Returns the spec of an array, by the names on its path.

    "tensor" shards the axis in `TENSOR_AXIS`, if it divides evenly. "fsdp" shards the first other
    axis that divides evenly. The array is replicated over the other mesh axes.
    """
    cut: dict[int, str] = {}
    along = next((TENSOR_AXIS[name] for name in names if name in TENSOR_AXIS), None)
    if along is not None and len(shape) > 1 and _divides(mesh, "tensor", shape[along]):
        cut[along] = "tensor"
    open_axes = [axis for axis in range(len(shape)) if axis not in cut]
    for axis in [axis for axis in open_axes if _divides(mesh, "fsdp", shape[axis])][:1]:
        cut[axis] = "fsdp"
    return P(*(cut.get(axis) for axis in range(len(shape))))


def _divides(mesh: Mesh, axis: str, size: int) -> bool:
    return axis in mesh.shape and size % mesh.shape[axis] == 0


def _from_host(array: Any, sharding: NamedSharding) -> jax.Array:
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _make_cpu_devices(count: int) -> None:
    """Splits the CPU into devices, unless JAX has begun to compute; affects no other platform."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return  # the caller checks the number of devices


def _named(config: DeviceConfig) -> dict[str, Any]:
    return {
        "coordinator_address": config.coordinator,
        "num_processes": config.processes,
        "process_id": config.process_id,
    }
