"""The assignment of matrices to devices."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muon_jax.mesh._slots import Slots, plan_slots
from muon_jax.mesh._stacks import as_batches, as_leaves


def work(slots, costs):
    """Returns the work of every device."""
    return sum(np.multiply(each.counts, cost) for each, cost in zip(slots, costs, strict=True))


COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any)


@given(COUNTS)
def test_a_matrix_lies_on_the_device_that_takes_it(counts):
    slots = Slots(tuple(counts))
    stack = jnp.arange(1, sum(counts) + 1, dtype=jnp.float32)[:, None]
    padded = slots.pad(stack)
    held = np.asarray(padded).reshape(len(counts), slots.each)
    np.testing.assert_array_equal((held > 0).sum(axis=1), counts)
    np.testing.assert_array_equal(slots.unpad(padded), stack)


@given(COUNTS)
def test_every_matrix_is_in_one_run_of_slots(counts):
    runs = Slots(tuple(counts)).levels()
    assert sum((stop - start) * busy.sum() for start, stop, busy in runs) == sum(counts)


def test_stacks_that_do_not_fill_the_devices_take_turns():
    slots = plan_slots([4, 4], [1.0, 1.0], devices=8)
    np.testing.assert_array_equal(work(slots, [1.0, 1.0]), np.ones(8))


def test_stacks_that_divide_evenly_are_shared_evenly():
    slots = plan_slots([8, 16], [3.0, 1.0], devices=8)
    assert [each.counts for each in slots] == [(1,) * 8, (2,) * 8]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(1, 100)), min_size=1, max_size=6),
    st.integers(1, 16),
)
def test_a_device_works_no_longer_than_its_part_and_one_matrix(stacks, devices):
    counts, costs = [count for count, _ in stacks], [cost for _, cost in stacks]
    slots = plan_slots(counts, costs, devices)
    assert [sum(each.counts) for each in slots] == counts
    assert all(
        each.each <= -(-count // devices) + 1 for each, count in zip(slots, counts, strict=True)
    )


MODELS = {
    "width 512, 6 layers": ({(512, 1536): 6, (512, 512): 6, (512, 2048): 12}, {8: 1.15}),
    "GPT-2 124M": ({(768, 2304): 12, (768, 768): 12, (768, 3072): 24}, {32: 1.4}),
    "Llama 3 8B": (
        {(4096, 4096): 64, (1024, 4096): 64, (4096, 14336): 96},
        {8: 1.0, 64: 1.1, 128: 1.1, 256: 2.12},  # the largest matrix alone is 2.11 at 256
    ),
}


@pytest.mark.parametrize(("shapes", "bounds"), MODELS.values(), ids=MODELS)
def test_the_busiest_device_does_little_more_than_its_part(shapes, bounds):
    counts = list(shapes.values())
    costs = [2.0 * short * short * (2 * long + short) for short, long in shapes]
    for devices, bound in bounds.items():
        busiest = work(plan_slots(counts, costs, devices), costs).max()
        assert busiest <= bound * np.dot(counts, costs) / devices * (1 + 1e-9)


@pytest.mark.parametrize("batch_axes", [(), (0,), (1,), (0, 2)])
def test_batches_are_leaves_again(batch_axes):
    stack = np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    batches = as_batches(jnp.asarray(stack), batch_axes)
    sizes = [1 if axis in batch_axes else n for axis, n in enumerate(stack.shape[1:])]
    assert batches.shape[1:] == tuple(sizes)
    np.testing.assert_array_equal(as_leaves(batches, stack.shape, batch_axes), stack)
