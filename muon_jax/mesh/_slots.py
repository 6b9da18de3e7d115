"""Assigns matrices to devices: a static plan, computed from shapes.

Collectives transfer equal parts, so every device has the same number of slots for the matrices of a
stack. If the matrices do not divide evenly, some slots are padding, and devices skip the work on
them. All stacks are balanced together, so that the busiest device finishes early.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from muon_jax._types import Solve
from muon_jax.mesh._specs import Axes
from muon_jax.views._matrix_axes import MatrixAxes, solve_batches

Cost: TypeAlias = Callable[[int, int], float]
"""Maps (rows, cols) to the work of orthogonalising one such matrix, in any unit."""


def quintic_flops(rows: int, cols: int) -> int:
    """The work of an orthogonalizer without `flops`: only ratios matter."""
    short, long = sorted((rows, cols))
    return 2 * short * short * (2 * long + short)


@dataclasses.dataclass(frozen=True)
class Slots:
    """The assignment of the matrices of one stack to devices.

    Attributes:
      counts: how many matrices each device owns, in order of the devices.
    """

    counts: tuple[int, ...]

    @property
    def each(self) -> int:
        """The number of slots of every device."""
        return max(self.counts)

    @property
    def even(self) -> bool:
        """Whether no slot is empty."""
        return min(self.counts) == self.each

    def pad(self, stack: Array) -> Array:
        """Pads (matrices, …) to (slots, …)."""
        if self.even:
            return stack
        index = np.full(len(self.counts) * self.each, len(stack))
        index[self._filled] = np.arange(len(stack))
        return stack.at[index].get(mode="fill", fill_value=0)

    def unpad(self, slots: Array) -> Array:
        """Returns the matrices without padding; the inverse of `pad`."""
        return slots if self.even else slots[self._filled]

    def levels(self) -> list[tuple[int, int, np.ndarray]]:
        """Lists ranges of slots (start, stop), and which devices have matrices in each."""
        counts = np.array(self.counts)
        edges = sorted({0, *self.counts})
        return [(start, stop, counts >= stop) for start, stop in itertools.pairwise(edges)]

    @property
    def _filled(self) -> np.ndarray:
        """The slots that hold a matrix, in order."""
        return np.flatnonzero(np.arange(self.each) < np.array(self.counts)[:, None])


def plan_slots(matrices: Sequence[int], costs: Sequence[float], devices: int) -> list[Slots]:
    """Balances stacks over devices so that the busiest finishes early.

    This is the longest-processing-time rule: assign the costliest remaining matrix to the least
    busy device. A device gets at most ⌈matrices / devices⌉ + 1 matrices of a stack, which bounds
    the padding.

    Args:
      matrices: the number of matrices of each stack.
      costs: the work of one matrix of each stack.
      devices: the number of devices.

    References:
      Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17, 1969.
    """
    load = [0.0] * devices
    planned = [Slots((0,))] * len(matrices)
    for stack in sorted(range(len(matrices)), key=lambda stack: -costs[stack]):
        most = math.ceil(matrices[stack] / devices) + 1
        counts = [0] * devices
        queue = [(busy, device) for device, busy in enumerate(load)]
        heapq.heapify(queue)
        for _ in range(matrices[stack]):
            busy, device = heapq.heappop(queue)
            counts[device] += 1
            load[device] = busy + costs[stack]
            if counts[device] < most:
                heapq.heappush(queue, (load[device], device))
        planned[stack] = Slots(tuple(counts))
    return planned


def solve_slots(
    stacks: Sequence[Array],
    views: Sequence[MatrixAxes],
    slots: Sequence[Slots],
    axes: Sequence[Axes],
    solve: Solve,
) -> list[Array]:
    """Orthogonalises the slots of this device, inside a shard_map.

    Args:
      stacks: (slots of this device, *leaf with batch axes of one) for every stack.
      views: how one entry of each stack is a matrix.
      slots: the assignment of each stack.
      axes: the mesh axes over which each stack is distributed, major first.
      solve: orthogonalises batches of matrices of any shapes.
    """
    runs = [
        (place, start, stop, busy)
        for place, each in enumerate(slots)
        for start, stop, busy in each.levels()
    ]
    parts = {run[:2]: stacks[run[0]][run[1] : run[2]] for run in runs}
    full = [run[:2] for run in runs if run[3].all()]
    solved = solve_batches([parts[key] for key in full], [views[key[0]] for key in full], solve)
    parts |= dict(zip(full, solved, strict=True))
    for place, start, _, busy in runs:
        if not busy.all():

            def work(part: Array, view: MatrixAxes = views[place]) -> Array:
                return solve_batches([part], [view], solve)[0]

            here = jnp.asarray(busy)[lax.axis_index(axes[place])]
            parts[place, start] = lax.cond(here, work, lambda part: part, parts[place, start])
    by_stack = [
        [part for (stack, _), part in sorted(parts.items()) if stack == place]
        for place in range(len(stacks))
    ]
    return [each[0] if len(each) == 1 else jnp.concatenate(each) for each in by_stack]
