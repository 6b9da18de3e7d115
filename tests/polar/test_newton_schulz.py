"""newton_schulz: formats, plan, cost, and agreement of its forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import covering
from matrices import gaussian, log_uniform, polar_error

import muon_jax


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_format_is_named_by_its_dtype_or_its_name(name):
    by_name = muon_jax.newton_schulz("minimax", dtype=name)
    assert by_name == muon_jax.newton_schulz("minimax", dtype=getattr(jnp, name))
    assert hash(by_name) == hash(muon_jax.newton_schulz("minimax", dtype=jnp.dtype(name)))


@pytest.mark.parametrize(
    ("argument", "choices"),
    [
        ({"dtype": object()}, "'float32', 'tensorfloat32', 'float16', 'bfloat16'"),
        ({"form": "gram"}, "'auto', 'direct'"),
        ({"normalization": "spectral"}, "'schatten', 'frobenius'"),
    ],
)
def test_what_is_no_choice_is_refused(argument, choices):
    (name,) = argument
    with pytest.raises(ValueError, match=rf"newton_schulz\({name}=.*choose one of {choices}"):
        muon_jax.newton_schulz(**argument)


@pytest.mark.parametrize(("short", "rounds"), [(63, False), (64, True)])
def test_operands_are_rounded_from_a_short_side_of_64(short, rounds):
    polar = muon_jax.newton_schulz(dtype="bfloat16")
    assert ("bf16" in str(jax.make_jaxpr(polar)(jnp.ones((1, short, 80))))) == rounds


@pytest.mark.parametrize(
    ("name", "shape"),
    covering(
        itertools.product(("fast", "accurate", "minimax"), [(32, 128), (16, 256)]),
        fast=[("fast", (32, 128)), ("minimax", (32, 128))],
    ),
    ids=str,
)
def test_the_gram_form_agrees_with_the_direct_form(name, shape):
    """The plan lets rounding move a result by about a thousandth of its norm; see `TOLERANCE`."""
    matrix = jnp.asarray(log_uniform(*shape, 100), jnp.float32)[None]
    planned, direct = (muon_jax.newton_schulz(name, form=form) for form in ("auto", "direct"))
    assert planned.plan(*shape) != direct.plan(*shape)
    difference = jax.jit(planned)(matrix) - jax.jit(direct)(matrix)
    assert np.linalg.norm(difference) < 2e-3 * np.linalg.norm(planned(matrix))


def test_steps_share_a_gram_matrix_where_a_matrix_is_long():
    default, direct = muon_jax.newton_schulz(), muon_jax.newton_schulz(form="direct")
    assert default.plan(64, 64) == direct.plan(64, 64)
    assert default.plan(64, 256) == default.plan(256, 64) != direct.plan(64, 256)
    assert direct.plan(64, 256).segments == ((0, 1), (1, 2), (2, 3))


@pytest.mark.parametrize("shape", [(64, 64), (64, 512)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("normalization", ["schatten", "frobenius"])
@pytest.mark.parametrize("name", ["fast", "accurate", "keller", "cubic"])
def test_the_program_has_the_products_of_its_plan(name, normalization, dtype, shape):
    orthogonalizer = muon_jax.newton_schulz(name, dtype=dtype, normalization=normalization)
    plan = orthogonalizer.plan(*shape)
    for way in (orthogonalizer.on_cpu, orthogonalizer.on_accelerator):
        program = str(jax.make_jaxpr(way)(jnp.ones((1, *shape))))
        assert program.count("dot_general") == plan.wide + plan.square


@pytest.mark.parametrize(
    ("name", "shape"), [("keller", (64, 64)), ("fast", (64, 256)), ("accurate", (32, 512))]
)
def test_flops_are_those_that_the_compiler_counts(name, shape):
    orthogonalizer = muon_jax.newton_schulz(name)
    compiled = jax.jit(orthogonalizer).lower(jnp.ones((1, *shape))).compile()
    counted = (compiled.cost_analysis() or {})["flops"]
    # Elementwise operations are some forty an entry, 1/short of the products' FLOPs.
    assert orthogonalizer.flops(*shape) <= counted < orthogonalizer.flops(*shape) * 1.25
    assert orthogonalizer.flops(*shape) == orthogonalizer.flops(*reversed(shape))
    assert orthogonalizer.flops(0, 5) == orthogonalizer.flops(5, 0) == 0


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "bound"),
    [
        ("fast", None, (256, 256), 0.11),
        ("fast", None, (64, 256), 0.08),
        ("fast", "bfloat16", (128, 512), 0.08),
        ("accurate", None, (64, 256), 0.006),
        ("minimax", "bfloat16", (128, 512), 0.02),
        ("keller", None, (64, 256), 0.25),
    ],
)
def test_the_error_on_a_gaussian_matrix_is_what_the_documents_say(name, dtype, shape, bound):
    matrix = gaussian(*shape)
    apply = jax.jit(muon_jax.newton_schulz(name, dtype=dtype))
    result = apply(jnp.asarray(matrix, jnp.float32)[None])[0]
    assert polar_error(result, matrix) < bound


def test_rounded_formats_stay_close_to_float32():
    matrix = jnp.asarray(gaussian(128, 256), jnp.float32)[None]
    exact = jax.jit(muon_jax.newton_schulz("minimax"))(matrix)
    for dtype, bound in (("float16", 0.02), ("bfloat16", 0.06)):
        rounded = jax.jit(muon_jax.newton_schulz("minimax", dtype=dtype))(matrix)
        assert np.linalg.norm(rounded - exact) < bound * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    covering(
        itertools.product(
            ("float32", "bfloat16"), [(3, 64, 160), (3, 160, 64), (1, 96, 96), (1, 8, 20)]
        ),
        fast=[
            ("float32", (3, 64, 160)),
            ("bfloat16", (3, 160, 64)),
            ("bfloat16", (1, 96, 96)),
            ("float32", (1, 8, 20)),
        ],
    ),
    ids=str,
)
def test_accelerators_get_what_cpus_get(shape, dtype):
    """The programs scale and transpose differently, and a CPU can run both."""
    matrices = jnp.stack([jnp.asarray(gaussian(*shape[1:]), jnp.float32)] * shape[0])
    orthogonalizer = muon_jax.newton_schulz("minimax", dtype=dtype)
    here = jax.jit(orthogonalizer.on_cpu)(matrices)
    there = jax.jit(orthogonalizer.on_accelerator)(matrices)
    bound = 1e-4 if dtype == "float32" else 0.02  # the order of sums differs
    assert np.linalg.norm(here - there) < bound * np.linalg.norm(here)


def test_the_number_format_follows_the_platform():
    default = muon_jax.newton_schulz()
    assert default.on("cpu") == muon_jax.newton_schulz(dtype="float32")
    assert default.on("tpu") == default.on("cuda") == muon_jax.newton_schulz(dtype="bfloat16")
    assert [default.on(each).operands(64, 128) for each in ("cpu", "tpu")] == [None, "bfloat16"]
    assert default.on("tpu").operands(63, 128) is None


def test_one_process_exports_for_every_platform():
    def exported(orthogonalizer, *platforms):
        function = jax.jit(lambda matrices: orthogonalizer(matrices))
        return jax.export.export(function, platforms=platforms)(jnp.ones((1, 64, 64))).mlir_module()

    default = muon_jax.newton_schulz()
    assert "bf16" not in exported(default, "cpu")
    assert all("bf16" in exported(default, each) for each in ("tpu", "cuda", "rocm"))
    assert "bf16" in exported(default, "cpu", "tpu", "cuda", "rocm")
    full = muon_jax.newton_schulz(dtype="float32")
    assert "bf16" not in exported(full, "cpu", "tpu", "cuda", "rocm")


def test_matrices_of_float64_keep_their_digits_on_every_platform():
    with jax.enable_x64(True):
        matrices = jnp.ones((1, 64, 64), jnp.float64)
        function = jax.jit(lambda matrices: muon_jax.newton_schulz()(matrices))
        assert "bf16" not in jax.export.export(function, platforms=["tpu"])(matrices).mlir_module()


def keller(matrix):
    """Runs optax.contrib.muon's default, with operands in bfloat16 and sums in float32."""

    def multiply(left, right):
        operands = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
        return jnp.matmul(*operands, preferred_element_type=jnp.float32)

    matrix = matrix / jnp.linalg.norm(matrix)
    for _ in range(5):
        gram = multiply(matrix, matrix.T)
        factor = -4.7750 * gram + 2.0315 * multiply(gram, gram)
        matrix = 3.4445 * matrix + multiply(factor, matrix)
    return matrix


def visible_error(result, matrix) -> float:
    """Returns the relative error on singular directions above 1e-3 of the largest."""
    left, values, right = np.linalg.svd(matrix)
    seen = values > 1e-3 * values[0]
    middle = left[:, seen].T @ np.asarray(result, np.float64) @ right[seen].T
    return float(np.linalg.norm(middle - np.eye(seen.sum())) / np.sqrt(seen.sum()))


@pytest.mark.parametrize("inputs", covering(["gaussian", "1e2", "1e3", "1e4"], fast=["gaussian"]))
def test_bfloat16_has_at_most_half_of_the_error_of_optax(inputs):
    shape = 512, 512
    matrix = gaussian(*shape) if inputs == "gaussian" else log_uniform(*shape, float(inputs))
    given = jnp.asarray(matrix, jnp.float32)
    theirs = visible_error(jax.jit(keller)(given), matrix)
    polar = muon_jax.newton_schulz().on("tpu")
    for way in (polar.on_cpu, polar.on_accelerator):
        assert visible_error(jax.jit(way)(given[None])[0], matrix) <= 0.5 * theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accelerators_take_the_largest_float32(dtype):
    """It is larger than the largest bfloat16."""
    largest = float(jnp.finfo(jnp.float32).max) * jnp.sign(jnp.asarray(gaussian(1, 64, 96)))
    polar = muon_jax.newton_schulz(dtype=dtype)
    result = polar.on_accelerator(largest.astype(jnp.float32))
    assert jnp.isfinite(result).all()
    np.testing.assert_allclose(result, polar.on_cpu(jnp.sign(largest)), atol=1e-3)
