"""Training steps of every kind, compiled for a mesh of TPUs, and their common assertions."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.train_state import TrainState

import muon_jax
from benchmarks.models import LAYOUTS, abstract, make_mesh, mixture, place, scanned, transformer
from benchmarks.topologies import Figures, compile_program, compile_step, devices_of

WIDTH, LAYERS = 256, 4
MODELS = {
    "apart": transformer(LAYERS, WIDTH),
    "scanned": scanned(transformer(LAYERS, WIDTH)),
    "experts": mixture(2, WIDTH, 8),
}


def muon(**options: Any) -> optax.GradientTransformation:
    axes = muon_jax.MatrixAxes(-2, -1)
    return optax.chain(
        muon_jax.scale_by_muon(axes=axes, **options), optax.scale_by_learning_rate(0.02)
    )


class Case:
    """A model on a mesh, and the steps that train it.

    Every step takes what it trains, which is donated, as its first argument and returns it.
    """

    def __init__(
        self,
        layout: str,
        axis_types: str | tuple[str, ...] = "Auto",
        model: str = "apart",
        topology: str = "v5e:2x4",
        dtype: str = "float32",
    ):
        self.layout = LAYOUTS[layout]
        self.mesh = make_mesh(self.layout, devices_of(topology), axis_types)
        self.params = self.place(abstract(MODELS[model], dtype))
        self.alone = functools.partial(cycles_of_one_device, model, topology, dtype)

    def place(self, tree: Any) -> Any:
        return place(tree, self.mesh, self.layout)

    def compile(
        self, step: Callable[..., Any], trained: Any, *given: Any, in_shardings: bool = False
    ) -> Figures:
        """Compiles a step, and checks the laws of all steps.

        With `in_shardings` the mesh in context replaces the mesh in the types of the arguments.
        """
        arguments = (trained := self.place(trained), *given)
        options: dict[str, Any] = {"donate_argnums": 0, "out_shardings": shardings(trained)}
        if in_shardings:
            options["in_shardings"] = shardings(arguments)
            arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        with jax.set_mesh(self.mesh) if in_shardings else contextlib.nullcontext():
            figures = compile_program(jax.jit(step, **options), *arguments)
        donated = sum(map(local_bytes, jax.tree.leaves(trained)))
        assert figures.aliased >= donated, "the state is copied"
        if self.layout.is_sharded:
            assert everywhere_bytes(figures) <= self.at_most(), "whole stacks go everywhere"
        return figures

    def at_most(self) -> float:
        """Returns the bytes that each device may get from all-gathers and all-reduces.

        Replicated shards may be sent twice, to the owner and back. The partitioner may move another
        eighth of the parameters.
        """
        leaves = jax.tree.leaves(self.params)
        shared = sum(local_bytes(leaf) for leaf in leaves if copies(leaf) > 1)
        return 2 * shared + sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 8

    def update(self, tx: optax.GradientTransformation, in_shardings: bool = False) -> Figures:
        def step(trained: Any, gradients: Any) -> Any:
            params, state = trained
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(tx.init, self.params)
        figures = self.compile(step, (self.params, state), self.params, in_shardings=in_shardings)
        assert figures.program.product_cycles <= self.alone() / 2, "devices repeat work"
        return figures

    def formula(self) -> float:
        """Returns the bytes that each device should receive, by docs/how-to/sharding.md."""

        def of(leaf: Any) -> float:
            same = copies(leaf)
            parts = leaf.sharding.num_devices / same
            there_and_back = 2 / same * (parts - 1) / parts
            return local_bytes(leaf) * (there_and_back + (same - 1) / same)

        return sum(map(of, jax.tree.leaves(self.params)))

    def scan_over_steps(self, tx: optax.GradientTransformation) -> Figures:
        def one(trained: Any, _: None) -> Any:
            params, state = trained
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            return (optax.apply_updates(params, updates), state), None

        def step(trained: Any) -> Any:
            return jax.lax.scan(one, trained, length=3)[0]

        return self.compile(step, (self.params, jax.eval_shape(tx.init, self.params)))

    def multi_steps(self, tx: optax.GradientTransformation) -> Figures:
        return self.update(optax.MultiSteps(tx, every_k_schedule=2).gradient_transformation())

    def train_state(self, tx: optax.GradientTransformation) -> Figures:
        def create(params: Any) -> TrainState:
            return TrainState.create(apply_fn=len, params=params, tx=tx)

        def step(state: TrainState, gradients: Any) -> TrainState:
            return state.apply_gradients(grads=gradients)

        return self.compile(step, jax.eval_shape(create, self.params), self.params)

    def nnx_optimizer(self, tx: optax.GradientTransformation) -> Figures:
        class Model(nnx.Module):
            def __init__(self, params: Any):
                for name, layer in params.items():
                    setattr(self, name, nnx.Dict(jax.tree.map(nnx.Param, layer)))

        def create(params: Any) -> Any:
            model = Model(params)
            return nnx.split((model, nnx.Optimizer(model, tx, wrt=nnx.Param)))

        def step(trained: Any, gradients: Any) -> Any:
            model, optimizer = nnx.merge(graph, trained)
            optimizer.update(model, nnx.state(Model(gradients), nnx.Param))
            return nnx.state((model, optimizer))

        graph, trained = jax.eval_shape(create, self.params)
        return self.compile(step, trained, self.params)


@functools.cache
def cycles_of_one_device(model: str, topology: str, dtype: str) -> int:
    """Returns the estimated cycles of products in one update on one device of a topology."""
    params = place(abstract(MODELS[model], dtype), devices_of(topology)[0])
    return compile_step(muon(), params, None).program.product_cycles


def shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def local_bytes(leaf: Any) -> int:
    """Returns the bytes of a leaf that each device holds."""
    shape = leaf.sharding.shard_shape(leaf.shape)
    return jnp.dtype(leaf.dtype).itemsize * math.prod(shape)


def copies(leaf: Any) -> int:
    """Returns the number of devices that hold each entry."""
    return leaf.sharding.num_devices * local_bytes(leaf) // (leaf.size * leaf.dtype.itemsize)


def everywhere_bytes(figures: Figures) -> float:
    """Returns the bytes of all results of all-gathers and all-reduces; loops count once."""
    return sum(
        each.received_bytes / each.times * each.group / (each.group - 1) * share
        for each in figures.program.collectives
        for kind, share in (("all-gather", 1), ("all-reduce", 1 / 2))
        if each.kind == kind
    )
