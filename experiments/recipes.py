"""Which learning rate and weight decay should Muon give to embeddings, heads and vectors?

python -m experiments.recipes run --queue FILE  # skips saved trials
python -m experiments.recipes report            # the tables, and two figures

The protocol is in docs/explanation/comparison.md. Learning rates and decays are arguments of the
compiled step, so trials that differ only in these numbers share one compilation.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from experiments import recipe_tables
from experiments.command_line import RESULTS, main
from experiments.recipe_arms import Numbers, make
from experiments.recipe_figures import draw_losses, draw_transfer
from experiments.recipe_tasks import Task, make_task
from experiments.trials import Measured, Trials


@dataclass(frozen=True)
class RecipeTrial:
    """One training run."""

    optimizer: str
    """A name of `recipe_arms.ARMS`."""
    learning_rate: float
    """Peak learning rate of the matrices."""
    seed: int = 0
    task: str = "language"
    """language, or digits."""
    batch_size: int = 8
    width: int = 128
    steps: int = 400
    input: float = 1.0
    """Factor on the peak for embeddings and first convolutions."""
    head: float = 1.0
    vector: float = 1.0
    input_decay: float = 1.0
    """Factor on the weight decay for embeddings and first convolutions."""
    head_decay: float = 1.0
    vector_decay: float = 0.0
    weight_decay: float = 0.1
    precondition: str = "none"
    """A name of `recipe_arms.PRECONDITIONERS`."""

    @property
    def numbers(self) -> Numbers:
        """Returns the numbers that may change without a new compilation."""
        return Numbers(*(jnp.float32(getattr(self, name)) for name in Numbers._fields))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which trials to run, and where their results are kept."""

    queue: Path = Path("queue.jsonl")
    """File with a line of JSON for each trial; lines may be added during the run."""
    results: Path = RESULTS / "recipes.jsonl"

    @property
    def trials(self) -> Trials[RecipeTrial]:
        return Trials(RecipeTrial, measure, self.results, workers=0)


def measure(trial: RecipeTrial) -> Measured:
    """Trains once; returns the held-out loss and errors at the end, and the seconds of a step."""
    run = _compiled(
        trial.optimizer,
        trial.precondition,
        trial.task,
        trial.batch_size,
        trial.width,
        trial.steps,
    )
    return run(trial.numbers, trial.seed)


@functools.cache
def _compiled(
    optimizer: str, precondition: str, task_name: str, batch_size: int, width: int, steps: int
) -> Callable[[Numbers, int], Measured]:
    """Returns a training function, which compiles once for all numbers and seeds."""
    task = _task(task_name, batch_size, width)
    schedule = warmup_cosine(task.warmup, steps)

    def transform(numbers: Numbers) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(make(optimizer, precondition, numbers, schedule))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: Any, numbers: Numbers) -> tuple[Any, Any, Array]:
        loss, grads = jax.value_and_grad(task.loss)(params, batch)
        updates, state = transform(numbers).update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    init = jax.jit(lambda params, numbers: transform(numbers).init(params))

    def run(numbers: Numbers, seed: int) -> Measured:
        params = task.init(seed)
        state = init(params, numbers)
        batches = task.batches(seed)
        began, loss = 0.0, jnp.inf
        for count in range(steps):
            params, state, loss = step(params, state, next(batches), numbers)
            if count == 0:
                loss.block_until_ready()
                began = time.process_time()
            if count % 50 == 0 and not math.isfinite(loss):
                return {"loss": None, "error": 1.0}
        jax.block_until_ready(params)
        seconds = (time.process_time() - began) / (steps - 1)
        loss, error = task.evaluate(params)
        return {
            "loss": round(loss, 5) if math.isfinite(loss) else None,
            "error": round(error, 5),
            "cpu_seconds_a_step": round(seconds, 4),
        }

    return run


@functools.cache
def _task(name: str, batch_size: int, width: int) -> Task:
    return make_task(name, batch_size, width)


def warmup_cosine(warmup: int, steps: int) -> Callable[[Any], Float[Array, ""]]:
    """Returns factors on the peak: a linear warm-up, then a cosine to zero."""

    def schedule(count: Any) -> Float[Array, ""]:
        progress = jnp.clip((count - warmup) / (steps - warmup), 0, 1)
        return jnp.minimum(1, (count + 1) / (warmup + 1)) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return schedule


def queued(file: Path) -> Iterator[RecipeTrial]:
    """Yields the trials of a file, including those that are added while it runs."""
    done: set[RecipeTrial] = set()
    while True:
        lines = [line for line in file.read_text().splitlines() if line.startswith("{")]
        waiting = [t for t in (RecipeTrial(**json.loads(line)) for line in lines) if t not in done]
        if not waiting:
            return
        done.add(waiting[0])
        yield waiting[0]


def run(plan: Plan) -> None:
    for trial in queued(plan.queue):
        print(plan.trials.measure([trial])[trial], flush=True)


def report(plan: Plan) -> str:
    return recipe_tables.report(plan.trials.saved())


FIGURES: dict[str, Callable[[Plan], Figure]] = {
    "recipes.png": lambda plan: draw_losses(plan.trials.saved()),
    "transfer.png": lambda plan: draw_transfer(plan.trials.saved()),
}

if __name__ == "__main__":
    main(Plan, __doc__, run=run, report=report, figures=FIGURES)
