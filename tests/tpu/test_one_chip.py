"""One TPU: whole optimizers compile, and products have the number format of its matrix units."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import SingleDeviceSharding

import muon_jax
from benchmarks.models import abstract, fused_transformer, place, scanned
from benchmarks.topologies import compile_program, compile_step, devices_of

pytestmark = pytest.mark.tpu

MODEL = fused_transformer(2, 128)


def on_chip(*shape, dtype="float32"):
    sharding = SingleDeviceSharding(devices_of("v5e:1x1")[0])
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@pytest.mark.parametrize("model", [MODEL, scanned(MODEL)], ids=["apart", "scanned"])
def test_a_whole_optimizer_compiles(model):
    params = place(abstract(model), devices_of("v5e:1x1")[0])
    params["head"] = {"kernel": on_chip(128, 1000), "bias": on_chip(1000)}
    figures = compile_step(muon_jax.muon(1e-3), params, None)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    assert figures.aliased >= 2 * weights  # the parameters, and momentum at least
    assert figures.program.collectives == ()
    assert figures.program.product_cycles > 0


def cycles(orthogonalizer):
    figures = compile_program(jax.jit(orthogonalizer), on_chip(2, 256, 256))
    return figures.program.product_cycles


def test_the_default_multiplies_bfloat16():
    narrow = cycles(muon_jax.newton_schulz(dtype="bfloat16"))
    assert 0 < cycles(muon_jax.newton_schulz()) <= 1.1 * narrow


def test_float32_takes_several_passes():
    narrow = cycles(muon_jax.newton_schulz(dtype="bfloat16"))
    assert cycles(muon_jax.newton_schulz(dtype="float32")) > 1.5 * narrow


def test_the_steps_share_their_products():
    program = jax.jit(muon_jax.newton_schulz()).lower(on_chip(1, 256, 512)).compile().as_text()
    bodies = re.findall(r"^%\S+ \(.*?\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL)
    names = r"%[\w.\-]+|, metadata=\{.*?\}"
    products = [re.sub(names, "", body) for body in bodies if " convolution(" in body]
    assert len(products) == 13
    assert len(set(products)) == 5  # each is compiled once


def test_a_step_of_bfloat16_parameters_keeps_their_dtype():
    params = place(abstract(MODEL, "bfloat16"), devices_of("v5e:1x1")[0])
    tx = muon_jax.muon(1e-3)
    updates, _ = jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    assert compile_step(tx, params, None).program.product_cycles > 0


def test_optax_compiles_beside_it():
    params = place(abstract(MODEL), devices_of("v5e:1x1")[0])
    assert compile_step(optax.contrib.muon(0.02), params, None).program.product_cycles > 0
