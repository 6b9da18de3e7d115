"""Text drawn from a language model, one token at a time, in a window of fixed size."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray


def sample_tokens(
    model: nnx.Module,
    prompt: Int[Array, "prompt"],
    *,
    count: int,
    context: int,
    temperature: float,
    seed: int,
) -> Int[Array, "count"]:
    """Draws `count` tokens that continue a prompt.

    The window is always `context` tokens wide, so one compilation serves every length. A full
    window slides by one token, because rotary positions depend only on distances.

    Args:
        prompt: at least one token; only the last `context` are used.
        temperature: divides the logits; 0 takes the likeliest token.
    """
    seen = prompt[-context:]
    window = jnp.zeros(context, jnp.int32).at[: len(seen)].set(seen)
    graph, state = nnx.split(model)
    keys = jax.random.split(jax.random.key(seed), count)
    return _draw(graph, state, window, jnp.int32(len(seen)), keys, jnp.float32(temperature))


@partial(jax.jit, static_argnums=0)
def _draw(
    graph: nnx.GraphDef,
    state: nnx.State,
    window: Int[Array, "context"],
    length: Int[Array, ""],
    keys: PRNGKeyArray,
    temperature: Float[Array, ""],
) -> Int[Array, "count"]:
    model = nnx.merge(graph, state)
    context = window.shape[0]

    def draw(
        carry: tuple[Int[Array, "context"], Int[Array, ""]], key: PRNGKeyArray
    ) -> tuple[tuple[Int[Array, "context"], Int[Array, ""]], Int[Array, ""]]:
        window, length = carry
        logits = model(window[None])[0, length - 1]
        noise = temperature * jax.random.gumbel(key, logits.shape)
        token = jnp.argmax(logits + noise).astype(jnp.int32)
        full = length == context
        window = jnp.where(full, jnp.roll(window, -1), window)
        window = window.at[jnp.where(full, context - 1, length)].set(token)
        return (window, jnp.minimum(length + 1, context)), token

    return jax.lax.scan(draw, (window, length), keys)[1]
