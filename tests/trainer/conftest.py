"""A model that several test files use."""

import jax
import pytest
from flax import nnx

from trainer.models.decoder import Decoder, DecoderConfig


@pytest.fixture(scope="session")
def decoder():
    """A tiny decoder whose head is not zero, so that its logits depend on its input."""
    config = DecoderConfig(width=16, layers=1, heads=2)
    model = nnx.jit(lambda: Decoder(config, 50, rngs=nnx.Rngs(0)))()
    model.head.kernel[...] = jax.random.normal(jax.random.key(1), (16, 50))
    return model
