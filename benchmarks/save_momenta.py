"""Saves what Muon orthogonalises in a real run: Nesterov momenta of the trainer's language model.

python -m benchmarks.save_momenta momenta.npz    # after 10, 100 and 200 steps
"""

from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx

import muon_jax
from trainer.data.text import read_text
from trainer.data.tokens import tokenize
from trainer.data.windows import training_batches
from trainer.language import next_token_loss
from trainer.models.decoder import Decoder, DecoderConfig

STEPS = (10, 100, 200)
MOMENTUM = 0.95
SAVED = ("attention/query", "attention/out", "mlp/up", "mlp/down")


def main(out: tyro.conf.Positional[Path]) -> None:
    tokens = tokenize(read_text(None), "bytes")
    model = Decoder(DecoderConfig(), tokens.vocabulary, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, muon_jax.muon(8e-3, momentum=MOMENTUM), wrt=nnx.Param)
    batches = training_batches(tokens, seed=0, context=128, batch_size=16)

    @nnx.jit
    def step(model, optimizer, batch):
        _, gradients = nnx.value_and_grad(next_token_loss, has_aux=True)(model, batch)
        optimizer.update(model, gradients)
        return gradients

    views = muon_jax.matrix_axes(nnx.state(model, nnx.Param))
    average, saved = None, {}
    for index in range(1, max(STEPS) + 1):
        gradients = step(model, optimizer, next(batches))
        average = jax.tree.map(
            lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new,
            average or jax.tree.map(np.zeros_like, gradients),
            gradients,
        )
        if index in STEPS:
            ahead = jax.tree.map(
                lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, average, gradients
            )
            saved |= _matrices(ahead, views, f"step {index}")
    np.savez(out, **saved)
    print(f"wrote {len(saved)} matrices to {out}")


def _matrices(tree, views, prefix: str) -> dict[str, np.ndarray]:
    found = {}
    for (path, leaf), view in zip(
        jax.tree_util.tree_leaves_with_path(tree),
        jax.tree.leaves(views, is_leaf=lambda view: view is None),
        strict=True,
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "blocks/1/" in name and any(part in name for part in SAVED):
            found[f"{prefix}, {name}"] = np.asarray(view.to_matrices(leaf)[0][0], np.float64)
    return found


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
