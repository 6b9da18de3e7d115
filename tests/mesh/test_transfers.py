"""The plan of the collectives: what goes the same way travels at once, in buffers of one size."""

import numpy as np
import pytest

from muon_jax.mesh._ownership import ShardedLeaf, plan_ownership
from muon_jax.mesh._transfers import transfers_from_owners, transfers_to_owners
from muon_jax.views._matrix_axes import MatrixAxes

MESH = {"data": 2, "fsdp": 3, "tensor": 2}
LAST_TWO = MatrixAxes(rows=-2, cols=-1)
BOTH, ROWS, WHOLE = (("fsdp",), ("tensor",)), (("fsdp",), ()), ((), ())


def leaf(*shape, held, wanted=None, dtype="float32"):
    return ShardedLeaf(shape, dtype, LAST_TWO, held, wanted or held)


def buckets_of(*leaves):
    return plan_ownership(leaves, MESH, tuple(MESH), lambda rows, cols: rows * cols)


MODEL = buckets_of(
    leaf(6, 8, held=BOTH),
    leaf(9, 4, held=ROWS),
    leaf(6, 8, held=BOTH),
    leaf(6, 4, held=BOTH),
    leaf(5, 7, held=WHOLE),
    leaf(4, 9, 4, held=((), *ROWS)),
)


@pytest.mark.parametrize("plan", [transfers_to_owners, transfers_from_owners])
def test_what_goes_the_same_way_travels_at_once(plan):
    transfers = plan(MODEL, MESH, None)
    ways = [
        (transfer.crossed, transfer.copies, transfer.dropped, transfer.wire)
        for transfer in transfers
    ]
    assert ways == [
        (("fsdp", "tensor"), ("data",), (), "float32"),
        (("fsdp",), ("data", "tensor"), (), "float32"),
        ((), ("data", "fsdp", "tensor"), (), "float32"),
    ]
    shapes = [[bucket.leaf.shape for bucket in transfer.specs] for transfer in transfers]
    assert shapes == [[(6, 8), (6, 4)], [(9, 4), (4, 9, 4)], [(5, 7)]]


def test_every_entry_travels_once_and_no_owner_gets_more_than_fits():
    for transfer in transfers_to_owners(MODEL, MESH, None):
        loads = [transfer.load(owner) for owner in transfer.owners.flat]
        assert transfer.capacity == max(loads)
        senders = np.prod([MESH[axis] for axis in transfer.crossed], dtype=int)
        entries = [len(bucket.members) * np.prod(bucket.leaf.shape) for bucket in transfer.specs]
        assert senders * sum(loads) == sum(entries)


def test_an_owner_stands_where_its_coordinates_say():
    """The owners of a matrix count along all their axes; a transfer turns that to its own two."""
    by_rows = transfers_to_owners(MODEL, MESH, None)[1]
    positions = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    expected = positions.transpose(0, 2, 1).reshape(4, 3)
    np.testing.assert_array_equal(by_rows.owners, expected)


def test_the_way_back_leads_to_where_results_are_wanted():
    layers = leaf(4, 6, 8, held=(("data",), (), ()), wanted=((), ("fsdp",), ()))
    (there,) = transfers_to_owners(buckets_of(layers), MESH, None)
    assert (there.crossed, there.dropped) == ((), ())
    (back,) = transfers_from_owners(buckets_of(layers), MESH, None)
    assert (back.crossed, back.dropped) == (("fsdp",), ("data",))
    (bucket,) = back.specs
    assert back.shard_shape(bucket) == (1, 2, 8)
    assert back.entries(bucket) == 16


@pytest.mark.parametrize(
    ("wish", "wires"),
    [
        (None, ["float32", "bfloat16", "float16"]),
        ("bfloat16", ["bfloat16", "float16"]),
        ("float32", ["float32", "bfloat16", "float16"]),
    ],
)
def test_a_wire_only_narrows(wish, wires):
    dtypes = ("float32", "bfloat16", "float16")
    buckets = buckets_of(*(leaf(6, 8, held=BOTH, dtype=dtype) for dtype in dtypes))
    transfers = transfers_to_owners(buckets, MESH, wish)
    assert [transfer.wire for transfer in transfers] == wires
    assert sum(len(transfer.specs) for transfer in transfers) == len(buckets)
