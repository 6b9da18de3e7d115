"""Preconditioners: formulas, invariances, and wrong input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from matrices import gaussian, polar

import muon_jax
from muon_jax import MatrixAxes, SecondMoment, Soap, Split

KINDS = covering(
    [SecondMoment(), SecondMoment(factored=True), Soap(every=3), Soap(sides="both")],
    fast=[SecondMoment(), Soap(every=3)],
)
BY_SVD = muon_jax.polar_by_svd()


def gradient(shape: tuple[int, ...], step: int) -> jax.Array:
    return jnp.asarray(gaussian(*shape, seed=step), jnp.float32)


def updates_of(shape, precondition, *, steps=12, change=lambda leaf: leaf, axes=None):
    """Returns the last update, and the state, of a leaf of random gradients."""
    tx = muon_jax.scale_by_muon(
        precondition=precondition,
        orthogonalizer=BY_SVD,
        axes=axes or MatrixAxes(-2, -1),
        scale="match_rms",
    )
    given = [change(gradient(shape, step)) for step in range(steps)]
    result, state, update = given[0], tx.init(given[0]), jax.jit(tx.update)
    for each in given:
        result, state = update(each, state)
    return result, state


def test_second_moment_follows_its_formula_in_numpy():
    shape, decay = (6, 10), 0.95
    momentum = square = expected = 0.0
    for step in range(5):
        new = gaussian(*shape, seed=step)
        momentum = 0.9 * momentum + 0.1 * new
        square = decay * square + (1 - decay) * new**2
        ahead = 0.9 * momentum + 0.1 * new
        expected = polar(ahead / np.sqrt(square)) * 0.2 * np.sqrt(10)
    result, _ = updates_of(shape, "second_moment", steps=5)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_factored_second_moment_follows_its_formula_in_numpy():
    shape, decay = (6, 10), 0.95
    momentum = rows = cols = expected = 0.0
    for step in range(5):
        new = gaussian(*shape, seed=step)
        momentum = 0.9 * momentum + 0.1 * new
        rows = decay * rows + (1 - decay) * np.mean(new**2, axis=1)
        cols = decay * cols + (1 - decay) * np.mean(new**2, axis=0)
        ahead = 0.9 * momentum + 0.1 * new
        expected = polar(ahead / np.sqrt(np.outer(rows, cols) / rows.mean())) * 0.2 * np.sqrt(10)
    result, state = updates_of(shape, SecondMoment(factored=True), steps=5)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.precondition)) == 6 + 10


@pytest.mark.parametrize("sides", ["both", "short"])
def test_soap_follows_its_formula_in_numpy(sides):
    shape, decay = (6, 10), 0.9
    momentum = size = left = right = expected = 0.0
    p, q = np.eye(6), np.eye(10)
    for step in range(13):
        new = gaussian(*shape, seed=step)
        momentum = 0.9 * momentum + 0.1 * new
        left = decay * left + (1 - decay) * new @ new.T
        right = decay * right + (1 - decay) * new.T @ new
        if step <= 10:  # every step among the first ten, then at multiples of five
            p = np.linalg.qr(left @ p + 1e-5 * np.trace(left) * p)[0]
            q = np.linalg.qr(right @ q + 1e-5 * np.trace(right) * q)[0]
        turn = np.eye(10) if sides == "short" else q
        inside = p.T @ (0.9 * momentum + 0.1 * new) @ turn
        size = decay * size + (1 - decay) * inside**2
        root = np.sqrt(size) + 1e-2 * np.sqrt(np.mean(size))
        expected = polar(p @ (inside / root) @ turn.T) * 0.2 * np.sqrt(10)
    result, _ = updates_of(shape, Soap(sides=sides), steps=13)
    np.testing.assert_allclose(result, expected, atol=2e-3)


def test_the_bases_of_soap_diagonalise_the_gram_matrices():
    left, right = (np.linalg.qr(gaussian(8, 8, seed=seed))[0] for seed in (1, 2))
    spectrum = np.diag(2.0 ** -np.arange(8))

    def change(noise):
        return jnp.asarray(left @ spectrum @ noise @ spectrum @ right, jnp.float32)

    _, state = updates_of((8, 8), Soap(decay=0.99), steps=60, change=change)
    for side in state.precondition[""][0][0][1:]:
        basis, gram = side.basis[0], side.gram[0]
        np.testing.assert_allclose(basis.T @ basis, np.eye(8), atol=1e-5)
        inside = np.abs(basis.T @ gram @ basis)
        scale = np.sqrt(np.outer(np.diag(inside), np.diag(inside)))
        assert np.max(inside / scale - np.eye(8)) < 0.35
        assert (np.diff(np.diag(inside)) < 0).all()


@pytest.mark.parametrize("kind", KINDS, ids=repr)
class TestLaws:
    def test_the_size_of_gradients_does_not_matter(self, kind):
        plain, _ = updates_of((6, 10), kind)
        for power in (-50, 50):
            scaled, _ = updates_of(
                (6, 10), kind, change=lambda leaf, power=power: leaf * 2.0**power
            )
            np.testing.assert_allclose(scaled, plain, atol=1e-5)

    def test_a_transposed_leaf_has_the_transposed_update(self, kind):
        plain, _ = updates_of((6, 10), kind)
        turned, _ = updates_of((6, 10), kind, change=jnp.transpose)
        np.testing.assert_allclose(turned.T, plain, atol=1e-4)

    def test_matrices_of_a_stack_do_not_know_each_other(self, kind):
        stack, _ = updates_of((3, 6, 10), kind)
        alone, _ = updates_of((3, 6, 10), kind, change=lambda leaf: leaf[1])
        np.testing.assert_allclose(stack[1], alone, atol=1e-4)

    def test_a_nan_stays_in_its_matrix(self, kind):
        result, _ = updates_of((3, 6, 10), kind, change=lambda leaf: leaf.at[1, 0, 0].set(jnp.nan))
        assert jnp.isnan(result).any((1, 2)).tolist() == [False, True, False]

    def test_empty_leaves_have_no_statistics(self, kind):
        leaves = {"layers": jnp.ones((4, 8)), "none": jnp.ones((0, 8))}
        tx = muon_jax.scale_by_muon(precondition=kind, axes=MatrixAxes(-2, -1))
        updates, _ = tx.update(leaves, tx.init(leaves))
        assert updates["none"].shape == (0, 8)

    def test_a_population_trains_as_each_by_itself(self, kind):
        tx = muon_jax.scale_by_muon(precondition=kind, axes=MatrixAxes(-2, -1))
        leaves = gradient((3, 6, 10), 0)
        state = jax.vmap(tx.init)(leaves)
        together, _ = jax.jit(jax.vmap(tx.update))(leaves, state)
        alone, _ = tx.update(leaves[1], tx.init(leaves[1]))
        np.testing.assert_allclose(together[1], alone, atol=1e-5)

    def test_zero_gradients_give_zero_updates(self, kind):
        result, _ = updates_of((6, 10), kind, change=jnp.zeros_like)
        assert not result.any()

    def test_parts_of_a_split_are_matrices_of_their_own(self, kind):
        whole, _ = updates_of((6, 12), kind, axes=MatrixAxes(0, 1, Split((4, 8))))
        part, _ = updates_of((6, 12), kind, change=lambda leaf: leaf[:, 4:])
        np.testing.assert_allclose(whole[:, 4:], part, atol=1e-4)

    def test_the_dtypes_of_the_state_stay(self, kind):
        for dtype in ("bfloat16", "float16"):
            tx = muon_jax.scale_by_muon(precondition=kind, axes=MatrixAxes(0, 1))
            leaf = gradient((6, 10), 0).astype(dtype)
            before = tx.init(leaf)
            update, after = tx.update(leaf, before)
            assert update.dtype == leaf.dtype
            assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, before)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("exponent", [-100, -70, 60, 120])
def test_second_moment_holds_in_all_of_float32(exponent, factored):
    kind = SecondMoment(factored=factored)
    plain, _ = updates_of((6, 10), kind)
    far, _ = updates_of((6, 10), kind, change=lambda leaf: leaf * 2.0**exponent)
    np.testing.assert_allclose(far, plain, atol=1e-5)


def test_long_sides_are_not_rotated():
    state = muon_jax.scale_by_muon(
        precondition=Soap(largest_side=8, sides="both"), axes=MatrixAxes(0, 1)
    ).init(jnp.ones((6, 10)))
    _, rows, cols = state.precondition[""][0][0]
    assert rows.basis.shape == (1, 6, 6)
    assert cols is None


def test_leaves_without_a_view_have_no_state():
    params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
    tx = muon_jax.muon(1e-3, precondition="soap")
    state = muon_jax.scale_by_muon(
        precondition="second_moment", axes={"kernel": MatrixAxes(0, 1), "bias": None}
    ).init(params)
    assert jax.tree.map(jnp.shape, state.precondition["kernel"]) == (4, 8)
    assert not jax.tree.leaves(state.precondition["bias"])
    jax.jit(tx.update)(params, tx.init(params), params)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: muon_jax.scale_by_muon(precondition="soup"), "precondition='soup'"),
        (lambda: muon_jax.muon(1.0, precondition=3), "precondition=3"),
        (lambda: SecondMoment(decay=1.0), "decay=1.0"),
        (lambda: SecondMoment(factored="rows"), "factored='rows'"),
        (lambda: Soap(every=0), "every=0"),
        (lambda: Soap(sides="long"), "sides='long'"),
        (lambda: Soap(largest_side=-1), "largest_side=-1"),
    ],
)
def test_unusable_choices_are_named(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()


@pytest.mark.parametrize("kind", [Soap(), SecondMoment(factored=True)], ids=repr)
def test_statistics_of_matrices_are_refused_on_shards(kind):
    tx = muon_jax.scale_by_muon(precondition=kind, axes=MatrixAxes(0, 1), distribute="off")
    leaf = jnp.ones((4, 8))
    state = tx.init(leaf)
    with pytest.raises(ValueError, match="shard_map or pmap"):
        jax.shard_map(
            lambda leaf: tx.update(leaf, state)[0],
            mesh=jax.make_mesh((1,), ("data",)),
            in_specs=jax.P(),
            out_specs=jax.P(),
            check_vma=False,
        )(leaf)
