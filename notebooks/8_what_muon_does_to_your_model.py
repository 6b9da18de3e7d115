# %% [markdown]
# # What Muon does to your model
#
# Muon trains the matrices of a model. It has to know which axes are inputs and outputs, and which parameters are several matrices in one array. It decides this by the names and shapes of parameters, which can be misleading, or by reading the loss, which shows what the model does with each parameter. This notebook shows both for three models, in Flax, in Equinox and as a plain function, finds where names are wrong, and gives the optimizer the routes from the loss. Before the training at the end nothing is computed, because shapes are enough.

# %% tags=["remove-cell"]
# Installs missing packages.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needed = {
    "muon_jax": ".." if Path("../pyproject.toml").exists() else "muon-jax",
    "equinox": "equinox",
    "flax": "flax",
}
missing = [needed[name] for name in needed if find_spec(name) is None]
if missing:
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *missing], check=True)

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import muon_jax
from muon_jax import MatrixAxes


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def cross_entropy(logits, labels):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def differences(explanation):
    """Prints the parameters whose routes by name and by the loss differ."""
    for leaf in explanation.differences:
        print(leaf.path, leaf.shape)
        print(f"  by name: {leaf.label}, {leaf.rule}, {leaf.axes}")
        print(f"  by loss: {leaf.traced.rule}, {leaf.traced.axes}")
    return {
        leaf.path: (leaf.axes, leaf.traced.axes)
        for leaf in explanation.differences
    }


# %% [markdown]
# ## A Flax model with the usual names
#
# A small decoder: an embedding, attention, a feed-forward layer with gate and up in one matrix, and an output head. `explain` takes the model, the optimizer, the loss and the other arguments of the loss. It traces the loss once with abstract values, so the model may be far larger than this machine.

# %%
WIDTH, VOCABULARY = 32, 101


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            4, WIDTH, decode=False, rngs=rngs
        )
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.gate_up = nnx.Linear(WIDTH, 4 * WIDTH, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, use_bias=False, rngs=rngs)
        self.lm_head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(x, mask=nnx.make_causal_mask(tokens))
        gate, up = jnp.split(self.gate_up(self.norm(x)), 2, axis=-1)
        return self.lm_head(x + self.down(nnx.silu(gate) * up))


def decoder_loss(model, tokens):
    return cross_entropy(model(tokens)[:, :-1], tokens[:, 1:])


decoder = nnx.eval_shape(lambda: Decoder(nnx.Rngs(0)))
tokens = shape(8, 20, dtype="int32")
usual = muon_jax.explain(
    decoder, muon_jax.muon(3e-4), loss=decoder_loss, args=(tokens,)
)
print(usual)
assert not usual.differences

# %% [markdown]
# The column *goes to* says which optimizer takes a parameter, *inputs -> outputs* which axes are which, and *by the loss* the route that the loss shows. Here both agree on every parameter. The split of `gate_up` was a guess from its name and width. The loss confirms it, because the model cuts the outputs in two parts. Below the table are the cost of Muon, the size of its state, and the reason of every rule.
#
# ## An Equinox model with uninformative names
#
# This is an image classifier with a grouped convolution, in a `Sequential`, so all names are numbers. In Equinox the parameters are the arrays of a model; `eqx.partition` extracts them, and the loss puts them back.

# %%


def classifier(key):
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(3, 16, 3, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Conv2d(16, 32, 3, groups=4, key=key),
            eqx.nn.Lambda(lambda x: jax.nn.relu(x).mean((1, 2))),
            eqx.nn.Linear(32, 64, key=key),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Linear(64, 10, key=key),
        ]
    )


arrays, rest = eqx.partition(
    eqx.filter_eval_shape(classifier, jax.random.key(0)),
    lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct),
)


def classifier_loss(arrays, images, labels):
    return cross_entropy(jax.vmap(eqx.combine(arrays, rest))(images), labels)


images, labels = shape(4, 3, 16, 16), shape(4, dtype="int32")
numbered = muon_jax.explain(
    arrays,
    muon_jax.muon(3e-4),
    loss=classifier_loss,
    args=(images, labels),
)
different = differences(numbered)
print(*numbered.notices, sep="\n")

filters = MatrixAxes(rows=(1, 2, 3), cols=0)
assert different == {
    "layers/2/weight": (filters, MatrixAxes((1, 2, 3), 0, split=4)),
    "layers/6/weight": (MatrixAxes(rows=1, cols=0), None),
}

# %% [markdown]
# Two of the four weights have wrong routes by name. Four groups of channels are separate, so their weight is four matrices, which neither the name nor the shape shows. The last layer computes logits, which train better with AdamW, but its name is `6`. With names alone, the notice that is printed last follows, which `muon` also gives as a warning. The loss shows the right route, because the outputs of that layer go into a softmax.
#
# ## A plain function with unusual names
#
# Here the parameters are a dictionary of arrays. `branches` holds two maps of one input in an array of three axes. `head` projects back to the width of the model.

# %%
params = {
    "words": shape(VOCABULARY, WIDTH),
    "branches": shape(WIDTH, 2, 48),
    "head": shape(48, WIDTH),
}


def plain_loss(params, tokens, targets):
    x = params["words"][tokens]
    left, right = jnp.einsum("btd,dnh->nbth", x, params["branches"])
    x = (jnp.tanh(left) * right) @ params["head"]
    return cross_entropy(x @ params["words"].T, targets)


batch = tokens, tokens
try:
    muon_jax.explain(params, muon_jax.muon(3e-4), loss=plain_loss, args=batch)
except ValueError as error:
    print(error)
else:
    raise AssertionError("the names are not silent")

# %% [markdown]
# The name `branches` decides nothing, and `muon` does not guess: it raises an error with the most frequent views. None of them is right here, because the axis in the middle counts the branches. `ambiguous="fallback"` sends the array to AdamW instead, so the table can be printed.

# %%
by_name = muon_jax.muon(3e-3, ambiguous="fallback")
own = muon_jax.explain(params, by_name, loss=plain_loss, args=batch)
different = differences(own)
print(*own.notices, sep="\n")
assert different == {
    "branches": (None, MatrixAxes(rows=0, cols=2)),
    "head": (None, MatrixAxes(rows=0, cols=1)),
}

# %% [markdown]
# By names, Muon would train no parameter of this model. By the loss, it trains three matrices: the two branches, and the parameter called `head`. Only `words`, which is looked up at the start and tied to the logits at the end, stays with AdamW.
#
# ## Give the optimizer the routes from the loss
#
# `trace_axes` returns the same routes as a value, with a reason for each. Give it to `muon` as `axes`.

# %%
traced = muon_jax.trace_axes(plain_loss, params, *batch)
print(traced)

by_loss = muon_jax.muon(3e-3, weight_decay=0.0, axes=traced)
settled = muon_jax.explain(params, by_loss, loss=plain_loss, args=batch)
assert not settled.differences
assert settled.parameters["muon"] == 32 * 2 * 48 + 48 * 32

# %% [markdown]
# The task is to learn one fixed permutation of the vocabulary. The figure shows the singular values of one step for `head` from the same gradient: with AdamW, the route by name, and with Muon, the route by the loss. Muon's singular values are nearly equal, because its step is a scaled orthogonal matrix; AdamW's are not.

# %%
keys = jax.random.split(jax.random.key(0), len(params) + 2)
weights = {
    name: jax.random.normal(key, leaf.shape) / np.sqrt(leaf.shape[0])
    for key, (name, leaf) in zip(keys[2:], params.items(), strict=True)
}
inputs = jax.random.randint(keys[0], (32, 20), 0, VOCABULARY)
targets = jax.random.permutation(keys[1], VOCABULARY)[inputs]
gradient = jax.grad(plain_loss)(weights, inputs, targets)

for name, tx in {"AdamW": muon_jax.adamw(3e-3), "Muon": by_loss}.items():
    step, _ = tx.update(gradient, tx.init(weights), weights)
    values = np.linalg.svd(step["head"], compute_uv=False)
    ratio = values[0] / np.median(values)
    print(f"{name}: largest over median singular value {ratio:.2f}")
    assert (ratio < 1.5) == (tx is by_loss)

# %% [markdown]
# The optimizer trains:

# %%


@jax.jit
def train_step(weights, state):
    loss, gradient = jax.value_and_grad(plain_loss)(weights, inputs, targets)
    step, state = by_loss.update(gradient, state, weights)
    return optax.apply_updates(weights, step), state, loss


state, losses = by_loss.init(weights), []
for _ in range(100):
    weights, state, loss = train_step(weights, state)
    losses.append(float(loss))
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} after 100 steps")
assert losses[-1] < losses[0] / 2

# %% [markdown]
# ## Where the loss does not decide
#
# Some uses cannot be followed, such as a weight that goes through a Fourier transform. The table then shows `not read` with the reason, and the name decides. A rule of your own overrides both.

# %%
spectral = {"mix": {"kernel": shape(WIDTH, WIDTH)}}


def spectral_loss(params, x):
    return (x @ jnp.fft.fft(params["mix"]["kernel"]).real).sum()


unread = muon_jax.explain(
    spectral,
    muon_jax.muon(3e-4, rules=[muon_jax.Rule("mix/kernel", "adamw")]),
    loss=spectral_loss,
    args=(shape(8, WIDTH),),
)
print(unread)
assert "not read" in str(unread)
assert unread.parameters == {"adamw": WIDTH * WIDTH}

# %% [markdown]
# ## In your own project
#
# Print the table once before a long run. If names and loss agree, `muon(learning_rate)` is all you need; if not, give `axes=muon_jax.trace_axes(loss, params, *args)` or a `Rule`. A test keeps it right when someone adds a layer later: `assert not muon_jax.explain(params, tx, loss=loss, args=args).differences`. [Routes from the loss](../docs/how-to/trace.md) lists what is read and where it goes, and [the page of models](../docs/reference/models.md) shows both for many architectures.
