"""Views: a round trip changes nothing, and every part has the right entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_jax._checks import named
from muon_jax.views._matrix_axes import MatrixAxes, Split, same_matrices


def counted(shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


def parts_of(axes, shape):
    return [np.asarray(part) for part in axes.to_matrices(counted(shape))]


@st.composite
def views(draw):
    """Draws a shape and a view with any axis groups, signs, order and a split that fits."""
    ndim = draw(st.integers(2, 5))
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=ndim, max_size=ndim)))
    order = draw(st.permutations(range(ndim)))
    row_count = draw(st.integers(1, ndim - 1))
    col_count = draw(st.integers(1, ndim - row_count))
    signed = [axis - ndim * draw(st.booleans()) for axis in order]
    rows, cols = signed[:row_count], signed[row_count : row_count + col_count]
    of = draw(st.sampled_from(["rows", "cols"]))
    size = int(np.prod([shape[axis] for axis in (rows if of == "rows" else cols)]))
    choices: list[Split | None] = [None]
    choices += [
        Split(parts, of, interleaved)
        for parts in range(1, size + 1)
        for interleaved in (False, True)
        if size % parts == 0
    ]
    choices += [Split((first, size - first), of) for first in range(1, size)]
    if size % 3 == 0:
        choices.append(Split((2, 1), of, interleaved=True))
    return shape, MatrixAxes(rows, cols, draw(st.sampled_from(choices)))


@settings(deadline=None, max_examples=60)
@given(views())
def test_from_matrices_inverts_to_matrices(case):
    shape, axes = case
    leaf = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    @jax.jit
    def there_and_back(leaf):
        parts = axes.to_matrices(leaf)
        assert tuple(part.shape for part in parts) == axes.matrix_shapes(shape)
        return axes.from_matrices(parts, shape)

    np.testing.assert_array_equal(there_and_back(leaf), leaf)


@settings(deadline=None, max_examples=25)
@given(views(), st.integers(1, 3))
def test_a_stack_of_weights_is_a_batch_of_their_matrices(case, layers):
    shape, axes = case
    stacked = MatrixAxes(
        [axis % len(shape) + 1 for axis in axes.rows],
        [axis % len(shape) + 1 for axis in axes.cols],
        axes.split,
    )

    @jax.jit
    def at_once_and_one_by_one(whole):
        layer_by_layer = zip(*map(axes.to_matrices, whole), strict=True)
        return stacked.to_matrices(whole), tuple(map(jnp.concatenate, layer_by_layer))

    jax.tree.map(np.testing.assert_array_equal, *at_once_and_one_by_one(counted((layers, *shape))))


VIEWS = {
    "dense": ((3, 5), MatrixAxes(0, 1), [(1, 3, 5)]),
    "transposed dense": ((5, 3), MatrixAxes(rows=1, cols=0), [(1, 3, 5)]),
    "scanned dense": ((7, 3, 5), MatrixAxes(-2, -1), [(7, 3, 5)]),
    "query": ((6, 2, 3), MatrixAxes(0, (1, 2)), [(1, 6, 6)]),
    "query by head": ((6, 2, 3), MatrixAxes(0, 2), [(2, 6, 3)]),
    "attention output": ((2, 3, 6), MatrixAxes((0, 1), 2), [(1, 6, 6)]),
    "convolution": ((3, 3, 2, 4), MatrixAxes((0, 1, 2), 3), [(1, 18, 4)]),
    "fused qkv": ((4, 12), MatrixAxes(0, 1, split=3), [(3, 4, 4)]),
    "scanned fused qkv": ((2, 4, 12), MatrixAxes(-2, -1, split=3), [(6, 4, 4)]),
    "grouped qkv": ((4, 8), MatrixAxes(0, 1, split=(4, 2, 2)), [(1, 4, 4), (1, 4, 2), (1, 4, 2)]),
    "fused inputs": ((6, 4), MatrixAxes(0, 1, split=Split(2, of="rows")), [(2, 3, 4)]),
    "nothing in it": ((0, 4), MatrixAxes(0, 1), [(1, 0, 4)]),
}


@pytest.mark.parametrize(("shape", "axes", "shapes"), VIEWS.values(), ids=VIEWS)
def test_matrix_shapes(shape, axes, shapes):
    assert list(axes.matrix_shapes(shape)) == shapes
    assert [part.shape for part in parts_of(axes, shape)] == shapes


def test_rows_are_the_inputs_whatever_the_storage_order():
    kernel = counted((3, 5))
    np.testing.assert_array_equal(
        MatrixAxes(rows=1, cols=0).to_matrices(kernel.T)[0],
        MatrixAxes(rows=0, cols=1).to_matrices(kernel)[0],
    )


def test_equal_parts_follow_each_other_in_the_batch():
    leaf = np.asarray(counted((2, 6)))
    (parts,) = parts_of(MatrixAxes(0, 1, split=3), (2, 6))
    np.testing.assert_array_equal(parts, [leaf[:, 0:2], leaf[:, 2:4], leaf[:, 4:6]])


def test_one_part_is_no_split():
    assert MatrixAxes(0, 1, split=1) == MatrixAxes(0, 1, split=Split(1, "rows")) == MatrixAxes(0, 1)
    (whole,) = parts_of(MatrixAxes(0, 1, split=(6,)), (4, 6))
    np.testing.assert_array_equal(whole[0], counted((4, 6)))


def test_unequal_parts_come_in_order():
    leaf = np.asarray(counted((2, 6)))
    parts = parts_of(MatrixAxes(0, 1, split=(3, 1, 2)), (2, 6))
    for part, columns in zip(parts, (slice(0, 3), slice(3, 4), slice(4, 6)), strict=True):
        np.testing.assert_array_equal(part[0], leaf[:, columns])


def test_an_interleaved_count_takes_every_nth_column():
    leaf = np.asarray(counted((2, 6)))
    (parts,) = parts_of(MatrixAxes(0, 1, split=Split(2, interleaved=True)), (2, 6))
    np.testing.assert_array_equal(parts, [leaf[:, 0::2], leaf[:, 1::2]])


def test_interleaved_sizes_repeat_as_a_pattern():
    """Two heads, each with a query of 2 columns, a key of 1 and a value of 1."""
    leaf = np.asarray(counted((3, 8)))
    split = Split((2, 1, 1), interleaved=True)
    query, key, value = (part[0] for part in parts_of(MatrixAxes(0, 1, split), (3, 8)))
    np.testing.assert_array_equal(query, leaf[:, [0, 1, 4, 5]])
    np.testing.assert_array_equal(key, leaf[:, [2, 6]])
    np.testing.assert_array_equal(value, leaf[:, [3, 7]])


def test_a_plain_matrix_costs_no_transpose():
    def there_and_back(leaf):
        axes = MatrixAxes(rows=0, cols=1)
        return axes.from_matrices(axes.to_matrices(leaf), leaf.shape)

    used = {
        str(equation.primitive) for equation in jax.make_jaxpr(there_and_back)(counted((3, 5))).eqns
    }
    assert used <= {"reshape", "broadcast_in_dim"}


def test_views_are_values():
    assert MatrixAxes(0, [1], split=3) == MatrixAxes((0,), 1, split=Split(3))
    assert Split([2, 1]) == Split((2, 1))
    assert len({MatrixAxes(0, 1), MatrixAxes(0, 1), MatrixAxes(1, 0)}) == 2
    assert repr(MatrixAxes(0, (1, 2))) == "MatrixAxes(rows=0, cols=(1, 2))"
    assert repr(MatrixAxes(0, 1, split=(2, 1))) == "MatrixAxes(rows=0, cols=1, split=(2, 1))"
    assert repr(Split(2)) == "Split(2)"
    assert repr(Split(2, "rows", interleaved=True)) == "Split(2, of='rows', interleaved=True)"
    for split in (Split(3), Split((2, 1), of="rows"), Split(2, interleaved=True)):
        axes = MatrixAxes(0, 1, split)
        assert eval(repr(axes)) == axes


REFUSED = {
    "empty group": (lambda: MatrixAxes((), 1), TypeError, "MatrixAxes(rows=())"),
    "no axis": (lambda: MatrixAxes(0, "cols"), TypeError, "MatrixAxes(cols='cols')"),  # type: ignore
    "truth": (lambda: MatrixAxes(True, 0), TypeError, "MatrixAxes(rows=True)"),
    "twice in one group": (
        lambda: MatrixAxes((0, 0), 1),
        ValueError,
        "MatrixAxes(rows=(0, 0))",
    ),
    "in both groups": (
        lambda: MatrixAxes((3, 0), (0, 1, 3)),
        ValueError,
        "MatrixAxes(cols=(0, 1, 3))",
    ),
    "no view": (
        lambda: MatrixAxes(0, 2, whole=3),  # type: ignore
        TypeError,
        "MatrixAxes(whole=3)",
    ),
    "no size": (lambda: Split(()), ValueError, "Split(parts=())"),
    "empty part": (lambda: Split((2, 0)), ValueError, "Split(parts=0)"),
    "no parts": (lambda: Split("ab"), TypeError, "Split(parts='a')"),  # type: ignore
    "unknown group": (
        lambda: Split(2, of="heads"),  # type: ignore
        ValueError,
        "Split(of='heads')",
    ),
}


@pytest.mark.parametrize(("make", "kind", "start"), REFUSED.values(), ids=REFUSED)
def test_unusable_views_are_refused_at_construction(make, kind, start):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value).startswith(f"muon_jax.{start}: ")


MISFITS = {
    "axis out of range": (
        MatrixAxes(0, 3),
        (8, 16),
        "it has no axis 3. Name axes between -2 and 1",
    ),
    "axis just out of range": (MatrixAxes(0, 2), (8, 16), "it has no axis 2. Name axes between"),
    "scalar": (MatrixAxes(0, 1), (), "it has no axis 0. A scalar has no axes."),
    "same axis by two names": (
        MatrixAxes(0, -2),
        (8, 16),
        "axis 0 is named twice. Name every axis once.",
    ),
    "parts too small": (MatrixAxes(0, 1, split=(4, 4)), (8, 16), "its cols are 16 wide"),
    "no equal parts": (
        MatrixAxes(0, 1, split=3),
        (8, 16),
        "its cols are 16 wide. Give a split whose parts fill that width exactly.",
    ),
    "pattern does not repeat": (
        MatrixAxes(0, 1, split=Split((4, 3), of="rows", interleaved=True)),
        (8, 16),
        "its rows are 8 wide",
    ),
}


@pytest.mark.parametrize(("axes", "shape", "words"), MISFITS.values(), ids=MISFITS)
def test_a_view_that_does_not_fit_names_call_path_and_remedy(axes, shape, words):
    words_before = r"^muon_jax\.scale_by_muon: "
    with named("scale_by_muon"), pytest.raises(ValueError, match=words_before) as caught:
        axes.check(shape, path="blocks/0/kernel")
    assert words in str(caught.value)
    assert f"{axes!r} does not fit 'blocks/0/kernel' of shape {shape}" in str(caught.value)


def test_without_a_path_only_the_shape_is_named():
    words = (
        r"^muon_jax\.MatrixAxes: MatrixAxes\(rows=0, cols=2\) does not fit shape \(8, 16\): it has"
    )
    with pytest.raises(ValueError, match=words):
        MatrixAxes(0, 2).matrix_shapes((8, 16))


COMPARED = {
    "axes of one": (MatrixAxes((0, 1), 2), MatrixAxes(1, 2), (1, 4, 6), True),
    "negative axes": (MatrixAxes(-2, -1), MatrixAxes(0, 1), (4, 6), True),
    "the order of inputs": (MatrixAxes((1, 0), 2), MatrixAxes((0, 1), 2), (2, 4, 6), True),
    "a count or sizes": (MatrixAxes(0, 1, 2), MatrixAxes(0, 1, (3, 3)), (4, 6), True),
    "exchanged": (MatrixAxes(0, 1), MatrixAxes(1, 0), (4, 6), False),
    "a batch axis": (MatrixAxes((0, 1), 2), MatrixAxes(1, 2), (2, 4, 6), False),
    "one without a split": (MatrixAxes(0, 1, 2), MatrixAxes(0, 1), (4, 6), False),
    "other parts": (MatrixAxes(0, 1, (2, 4)), MatrixAxes(0, 1, (4, 2)), (4, 6), False),
    "one interleaved": (
        MatrixAxes(0, 1, 2),
        MatrixAxes(0, 1, Split(2, interleaved=True)),
        (4, 6),
        False,
    ),
    "the order of what is split": (
        MatrixAxes(0, (1, 2), 2),
        MatrixAxes(0, (2, 1), 2),
        (4, 2, 6),
        False,
    ),
}


@pytest.mark.parametrize(("one", "other", "shape", "same"), COMPARED.values(), ids=COMPARED)
def test_views_that_make_the_same_matrices(one, other, shape, same):
    assert same_matrices(one, other, shape) is same_matrices(other, one, shape) is same
