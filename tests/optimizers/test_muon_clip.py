"""muon_clip is muon, followed by QK-Clip for heads above the threshold."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

from muon_jax.optimizers._muon import muon, muon_clip
from muon_jax.routing._rule import Rule

PARAMS = {
    "embed": {"embedding": np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)},
    "attn": {
        name: {"kernel": np.cos(np.arange(64, dtype=np.float32) * rate).reshape(8, 2, 4)}
        for name, rate in (("query", 1.3), ("key", 2.1), ("value", 3.7))
    },
}
GRADIENTS = jax.tree.map(lambda w: np.sin(3 * w), PARAMS)


def stepped(tx: Any, **extra_args: Any) -> Any:
    # Not compiled, because another program may round differently, and bits are compared.
    updates, _ = tx.update(GRADIENTS, tx.init(PARAMS), PARAMS, **extra_args)
    return optax.apply_updates(PARAMS, updates)


def test_at_the_threshold_it_is_muon_to_the_last_bit():
    tx = muon_clip(0.1, threshold=50.0, weight_decay=0.3)
    maxima = {"attn": np.array([50.0, -3.0])}
    jax.tree.map(
        np.testing.assert_array_equal,
        stepped(tx, max_logits=maxima),
        stepped(muon(0.1, weight_decay=0.3)),
    )


def test_over_the_threshold_it_scales_what_muon_gave():
    clipped = stepped(muon_clip(0.1), max_logits={"attn": np.array([400.0, 20.0])})
    expected = stepped(muon(0.1))
    for name in ("query", "key"):
        kernel = np.asarray(expected["attn"][name]["kernel"]) * [[[0.5], [1.0]]]
        np.testing.assert_allclose(clipped["attn"][name]["kernel"], kernel, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(
        clipped["attn"]["value"]["kernel"], expected["attn"]["value"]["kernel"]
    )


def test_takes_the_arguments_of_muon_and_no_others():
    rules = [Rule("*/query/kernel", "adamw")]
    tx = muon_clip(0.1, rules=rules, scale="spectral")
    jax.tree.map(
        np.testing.assert_array_equal,
        stepped(tx, max_logits={"attn": np.zeros(2)}),
        stepped(muon(0.1, rules=rules, scale="spectral")),
    )
    with pytest.raises(TypeError, match="treshold"):
        muon_clip(0.1, treshold=50.0)
