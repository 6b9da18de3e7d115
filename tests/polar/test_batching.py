"""Matrices of one shape share one computation, with chunks of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matrices import gaussian

from muon_jax._checks import named
from muon_jax.polar._batching import orthogonalize_all

SQUARE = (
    r"^muon_jax\.muon\(orthogonalizer=<function .*\): it returns \(1, 4, 4\) for \(1, 4, 8\): "
    r"return the same shape\."
)
SHAPES = [(1, 4, 8), (3, 8, 4), (2, 4, 8), (1, 5, 5), (0, 4, 8), (2, 0, 4)]


def cube(matrices):
    """Commutes with transposition, as a polar factor does, and is cheap to compile."""
    return matrices @ matrices.mT @ matrices


@pytest.mark.parametrize("chunk_bytes", [None, 1, 4 * 32 * 2, 4 * 32 * 4, 10**9])
def test_every_chunking_gives_what_a_loop_gives(chunk_bytes):
    matrices = [jnp.asarray(gaussian(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    results = orthogonalize_all(matrices, cube, chunk_bytes)
    for result, batch in zip(results, matrices, strict=True):
        assert result.shape == batch.shape
        for one, matrix in zip(result, batch, strict=True):
            np.testing.assert_allclose(one, cube(matrix), rtol=1e-5)


def sizes_of_chunks(count, chunk_bytes=None):
    """Returns the sizes of chunks on CPU and on accelerators, in the order of tracing."""
    seen = []

    def spy(matrices):
        seen.append(len(matrices))
        return matrices

    orthogonalize_all([jnp.ones((count, 4, 8))], spy, chunk_bytes)
    return seen


@pytest.mark.parametrize(
    ("chunk_bytes", "sizes"),
    [(1, {1}), (4 * 32 * 3, {3, 1}), (4 * 32 * 4, {4, 3}), (10**6, {7})],
)
def test_a_chunk_holds_no_more_than_its_bound(chunk_bytes, sizes):
    assert set(sizes_of_chunks(7, chunk_bytes)) == sizes


def test_cpus_take_one_matrix_at_a_time_and_accelerators_many():
    assert sorted(set(sizes_of_chunks(7))) == [1, 7]


def test_a_program_is_made_for_the_platform_that_it_is_lowered_for():
    matrices = [jnp.ones((7, 4, 8)), jnp.ones((7, 8, 4))]

    def exported(*platforms):
        solve = jax.jit(lambda matrices: orthogonalize_all(matrices, cube))
        return jax.export.export(solve, platforms=platforms)(matrices).mlir_module()

    assert "stablehlo.while" in exported("cpu")
    assert all("stablehlo.while" not in exported(each) for each in ("tpu", "cuda"))
    assert "stablehlo.while" in exported("cpu", "tpu")


def test_dtypes_do_not_mix():
    half, full = jnp.ones((1, 4, 4), jnp.bfloat16), jnp.ones((1, 4, 4), jnp.float32)
    results = orthogonalize_all([half, full], cube)
    assert [result.dtype for result in results] == [half.dtype, full.dtype]


@pytest.mark.parametrize("count", [1, 3])
def test_a_result_has_the_dtype_and_the_shape_that_came(count):
    stack = jnp.ones((count, 4, 8), jnp.bfloat16)
    (widened,) = orthogonalize_all([stack], lambda matrices: jnp.float32(2) * matrices)
    assert widened.dtype == jnp.bfloat16
    with named("muon"), pytest.raises(ValueError, match=SQUARE):
        orthogonalize_all([stack], lambda matrices: matrices @ matrices.mT, 1)


def test_the_program_grows_with_shapes_and_not_with_leaves():
    def products(leaves: int) -> int:
        matrices = [jnp.ones((1, 4, 8))] * leaves + [jnp.ones((1, 8, 4))] * leaves
        lowered = jax.jit(lambda batch: orthogonalize_all(batch, cube)).lower(matrices)
        return lowered.as_text().count("dot_general")

    assert products(2) == products(24) == 2
