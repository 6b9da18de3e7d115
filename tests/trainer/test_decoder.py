"""The decoder, and sampling from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer.language import next_token_loss
from trainer.models.decoder import Decoder, DecoderConfig, rotate
from trainer.models.sampling import sample_tokens

pytestmark = pytest.mark.slow

TINY = DecoderConfig(width=16, layers=1, heads=2)
CONTEXT = 8


@nnx.jit
def _logits(model, tokens):
    return model(tokens[None])[0]


def logits(model, tokens):
    """Returns the logits after each token; pads the input, since later tokens do not matter."""
    padded = np.pad(tokens, (0, CONTEXT - len(tokens)))
    return np.asarray(_logits(model, padded))[: len(tokens)]


def test_first_loss_is_that_of_a_uniform_guess():
    model = nnx.jit(lambda: Decoder(TINY, 50, rngs=nnx.Rngs(0)))()
    loss, _ = nnx.jit(next_token_loss)(model, jnp.arange(18).reshape(2, 9))
    assert float(loss) == pytest.approx(np.log(50), rel=1e-6)


def test_logits_do_not_see_later_tokens(decoder):
    tokens = np.arange(8)
    before, after = logits(decoder, tokens), logits(decoder, np.where(tokens == 5, 40, tokens))
    np.testing.assert_array_equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(axis=-1).all()


def test_rotary_positions_see_only_distances():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    at = [rotate(jnp.tile(x, (1, 9, 1, 1)))[0, :, 0] for x in (query, key)]
    products = at[0] @ at[1].T
    for distance in range(-8, 9):
        diagonal = jnp.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-5)
    assert float(jnp.abs(products[0, 0] - products[0, 8])) > 1e-3


def test_sample_takes_the_likeliest_token_in_a_sliding_window(decoder):
    drawn = sample_tokens(
        decoder, jnp.array([3, 1, 4]), count=12, context=CONTEXT, temperature=0.0, seed=0
    )
    seen = [3, 1, 4]
    for _ in range(12):
        seen.append(int(logits(decoder, seen[-CONTEXT:])[-1].argmax()))
    assert drawn.tolist() == seen[3:]


def test_sample_is_fixed_by_its_seed(decoder):
    def draw(seed):
        prompt = jnp.array([3, 1, 4])
        return sample_tokens(decoder, prompt, count=12, context=CONTEXT, temperature=1.0, seed=seed)

    assert draw(0).tolist() == draw(0).tolist() != draw(1).tolist()
