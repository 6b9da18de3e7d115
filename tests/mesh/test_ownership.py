"""The plan: every unit has one owner, all hosts agree, no device works much longer than ideal."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muon_jax.mesh._ownership import (
    ShardedLeaf,
    assign_units,
    owner_positions,
    plan_ownership,
    quintic_flops,
    shard_shape,
)
from muon_jax.views._matrix_axes import MatrixAxes

MESH = {"data": 2, "fsdp": 3, "tensor": 2}
AXES = tuple(MESH)
LAST_TWO = MatrixAxes(rows=-2, cols=-1)


def cost(rows, cols):
    return rows * cols * min(rows, cols)


def leaf(*shape, held=None, wanted=None):
    held = held or ((),) * len(shape)
    return ShardedLeaf(shape, "float32", LAST_TWO, held, wanted or held)


def loads(buckets, mesh):
    """The work of every device of the mesh, counted one device at a time."""
    work = np.zeros(tuple(mesh.values()))
    for bucket in buckets:
        shares = np.reshape(bucket.counts, [mesh[a] for a in bucket.owners])
        for place in np.ndindex(work.shape):
            owner = tuple(c for c, axis in zip(place, mesh, strict=True) if axis in bucket.owners)
            work[place] += shares[owner] * cost(*bucket.leaf.shape[-2:])
    return work


sizes = st.integers(1, 9)
one_lot = st.tuples(
    st.integers(0, 12),
    st.integers(1, 50),
    st.sampled_from([group for count in range(4) for group in itertools.combinations(AXES, count)]),
)


@given(st.lists(one_lot, min_size=1, max_size=8))
def test_every_unit_has_one_owner(buckets):
    units, costs, owners = zip(*buckets, strict=True)
    taken = assign_units(units, costs, owners, MESH)
    for count, group, counts in zip(units, owners, taken, strict=True):
        assert len(counts) == math.prod(MESH[axis] for axis in group)
        assert sum(counts) == count
        assert min(counts) >= 0


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 50)), min_size=1, max_size=8))
def test_no_owner_works_longer_than_its_part_and_one_unit(buckets):
    units, costs = zip(*buckets, strict=True)
    taken = assign_units(units, costs, [AXES] * len(units), MESH)
    busiest = max(np.transpose(taken) @ costs)
    owners = math.prod(MESH.values())
    largest = max((c for u, c in buckets if u), default=0)
    assert owners * busiest <= sum(u * c for u, c in buckets) + largest * (owners - 1)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_no_plan_at_all_is_better_by_more_than_a_third(costs):
    """Graham: no more than 4/3 − 1/9 for three owners, held against every plan there is."""
    taken = assign_units([1] * len(costs), costs, [("fsdp",)] * len(costs), MESH)
    busiest = max(np.transpose(taken) @ costs)
    best = min(
        max(np.bincount(plan, weights=costs, minlength=3))
        for plan in itertools.product(range(3), repeat=len(costs))
    )
    assert 9 * busiest <= 11 * best


def test_ties_are_broken_by_position():
    assert assign_units([3, 2], [5.0, 5.0], [("fsdp",)] * 2, MESH) == [[1, 1, 1], [1, 1, 0]]
    assert assign_units([2, 3], [1.0, 7.0], [("fsdp",)] * 2, MESH) == [[1, 1, 0], [1, 1, 1]]


def test_work_that_cannot_move_is_counted_first():
    """The first device of each tensor pair has its own matrix, so the second takes the rest."""
    mesh = {"data": 2, "tensor": 2}
    taken = assign_units([6, 1], [1.0, 3.0], [("data", "tensor"), ("tensor",)], mesh)
    assert taken == [[0, 3, 0, 3], [1, 0]]


def test_equal_leaves_are_one_lot_of_contiguous_ranges():
    mesh = {"fsdp": 4}
    buckets = plan_ownership(
        [leaf(8, 16), leaf(16, 8), leaf(8, 16), leaf(3, 8, 16)], mesh, ("fsdp",), cost
    )
    assert [bucket.members for bucket in buckets] == [(0, 2), (1,), (3,)]
    assert [bucket.units for bucket in buckets] == [1, 1, 3]
    for bucket in buckets:
        assert bucket.shares[0].start == 0
        assert all(a.stop == b.start for a, b in itertools.pairwise(bucket.shares))
        assert bucket.shares[-1].stop == len(bucket.members) * bucket.units
    assert loads(buckets, mesh).max() == 2 * cost(8, 16)


def test_a_shard_has_its_part_of_every_axis():
    spec = (("data", "fsdp"), (), ("tensor",))
    assert np.empty(shard_shape((12, 5, 8), spec, MESH)).shape == (2, 5, 4)


@pytest.mark.parametrize("shape", [(4, 12), (12, 4)])
def test_a_quintic_step_is_three_products(shape):
    """XXᵀ, its square, and the polynomial of it times X, short side first."""
    assert quintic_flops(*shape) == 2 * (4 * 12 * 4 + 4 * 4 * 4 + 4 * 4 * 12)


def test_a_large_matrix_has_its_owner_to_itself():
    mesh = {"fsdp": 2}
    buckets = plan_ownership([leaf(64, 64), leaf(8, 8), leaf(8, 16)], mesh, ("fsdp",), cost)
    assert loads(buckets, mesh).max() == cost(64, 64)


def test_axes_that_shard_a_matrix_before_or_after_own_it():
    turned = leaf(8, 16, held=(("fsdp",), ()), wanted=((), ("tensor",)))
    (bucket,) = plan_ownership([turned], MESH, (), cost)
    assert bucket.owners == ("fsdp", "tensor")


def test_a_sharded_batch_stays_where_it_is():
    held = (("data",), (), ("tensor",))
    buckets = plan_ownership(
        [leaf(6, 8, 16, held=held), leaf(8, 16)], MESH, ("data", "tensor"), cost
    )
    stack, single = buckets
    assert stack.owners == ("tensor",), "never data, and fsdp takes no part"
    assert stack.units == 3
    assert single.owners == ("data", "tensor")


def test_what_shards_a_matrix_names_its_owners_even_if_not_shared():
    (bucket,) = plan_ownership([leaf(8, 16, held=(("fsdp",), ()))], MESH, (), cost)
    assert bucket.owners == ("fsdp",)
    (bucket,) = plan_ownership([leaf(8, 16)], MESH, (), cost)
    assert bucket.owners == ()


@given(st.permutations(AXES), st.sets(st.sampled_from(AXES)))
def test_owner_positions_agree_with_coordinates(order, named):
    owners = tuple(axis for axis in AXES if axis in named)
    positions = owner_positions(owners, tuple(order), MESH)
    shape = [MESH[axis] for axis in order]
    for flat, position in enumerate(positions.tolist()):
        at = dict(zip(order, np.unravel_index(flat, shape), strict=True))
        expected = 0
        for axis in owners:
            expected = expected * MESH[axis] + int(at[axis])
        assert position == expected


@pytest.mark.parametrize(
    ("held", "wanted", "returns"),
    [
        ((("data",), (), ()), ((), (), ()), True),  # ZeRO-1 over layers
        (((), ("data",), ()), ((), (), ()), True),  # ZeRO-1 over rows
        (((), ("data",), ()), ((), (), ("data",)), True),
        ((("data", "fsdp"), (), ()), (("data",), (), ()), True),
        ((("data", "fsdp"), (), ()), (("fsdp",), (), ()), False),  # not the innermost
        (((), (), ()), (("data",), (), ()), False),  # owners do not sort a batch
        ((("data",), (), ()), ((), ("data",), ()), False),  # owners keep their coordinate
    ],
)
def test_a_sharding_without_a_way_back_is_given_up(held, wanted, returns):
    given_up = leaf(6, 6, 6, held=held, wanted=wanted).settled()
    assert given_up.held == (held if returns else wanted)
    assert given_up.wanted == wanted


def test_views_say_what_a_unit_is():
    heads = ShardedLeaf((5, 12, 4, 8), "float32", MatrixAxes(1, (2, 3)), ((),) * 4, ((),) * 4)
    assert heads.batch_axes == (0,)
    assert heads.unit_shape == (1, 12, 4, 8)
    apart = ShardedLeaf((12, 4, 8), "float32", MatrixAxes(0, 2), ((),) * 3, ((),) * 3)
    assert apart.batch_axes == (1,)
    (bucket,) = plan_ownership([apart], MESH, AXES, cost)
    assert bucket.units == 4
    (split,) = plan_ownership(
        [ShardedLeaf((12, 24), "float32", MatrixAxes(0, 1, split=2), ((),) * 2, ((),) * 2)],
        MESH,
        AXES,
        cost,
    )
    assert split.units == 1
