"""The image program: official file formats, the network, whole runs, and wrong input."""

import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainer.classification import MEASURED_AT_ONCE, ImageConfig, held_out_batches, report
from trainer.data.batches import shuffled_batches
from trainer.data.images import CIFAR, IDX, Labelled, read_images
from trainer.devices import Devices
from trainer.errors import UsageError
from trainer.models.convolutions import ConvolutionConfig, make_network
from trainer.optimizers import OptimizerConfig, make_optimizer
from trainer.programs import images
from trainer.records.run_folder import RunFolder
from trainer.training import RunConfig

TINY = ConvolutionConfig(width=2, stages=1)


def idx(array: np.ndarray) -> bytes:
    """Writes the format of MNIST, as https://yann.lecun.com/exdb/mnist describes it."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def drawn(count: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images of bytes, and labels."""
    draw = np.random.default_rng(count)
    images = draw.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, draw.integers(0, 10, count, dtype=np.uint8)


def write_idx(folder: Path) -> Path:
    folder.mkdir()
    for (image_file, label_file), count in zip(IDX.values(), (12, 5), strict=True):
        pictures, classes = drawn(count, 7, 6)
        (folder / image_file).write_bytes(idx(pictures))
        (folder / label_file).write_bytes(idx(classes))
    return folder


def write_cifar(folder: Path) -> Path:
    folder.mkdir()
    for part in CIFAR.values():
        for name in part:
            planes, classes = drawn(4, 3, 32, 32)
            records = [
                bytes([label]) + x.tobytes() for x, label in zip(planes, classes, strict=True)
            ]
            (folder / name).write_bytes(b"".join(records))
    return folder


# Files


def test_idx_files_are_read_as_they_were_written(tmp_path):
    data = read_images(write_idx(tmp_path / "mnist"))
    for part, count in ((data.train, 12), (data.held_out, 5)):
        pictures, classes = drawn(count, 7, 6)
        np.testing.assert_array_equal(part.images, pictures[..., None])
        np.testing.assert_array_equal(part.labels, classes)


def test_cifar_files_are_read_as_they_were_written(tmp_path):
    data = read_images(write_cifar(tmp_path / "cifar"))
    assert (len(data.train), len(data.held_out)) == (20, 4)
    planes, classes = drawn(4, 3, 32, 32)
    for channel in range(3):
        np.testing.assert_array_equal(data.held_out.images[..., channel], planes[:, channel])
    np.testing.assert_array_equal(data.held_out.labels, classes)


def test_the_digits_are_all_there():
    data = read_images(None)
    assert (len(data.train), len(data.held_out), data.classes) == (1437, 360, 10)
    assert data.train.images.shape[1:] == (8, 8, 1)
    assert data.train.images.max() == 16
    assert min(np.bincount(data.held_out.labels)) > 20


def lacking(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


def damaged(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder


def pickled(folder: Path) -> Path:
    folder.mkdir()
    return damaged(folder, "data_batch_1", b"\x80\x02}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at, "--data-dir {at} is no folder; give one of images, or leave it out"),
        (
            lambda at: at.parent,
            "{at.parent} holds no images that this program knows: it looks for "
            "train-images-idx3-ubyte.gz and its three companions (Fashion-MNIST), or for "
            "data_batch_1.bin to data_batch_5.bin and test_batch.bin (CIFAR-10)",
        ),
        (pickled, "{at} holds pickles, and reading a pickle may run any code; give cifar-10-batch"),
        (
            lambda at: lacking(write_idx(at), "t10k-labels-idx1-ubyte.gz"),
            "--data-dir {at} lacks t10k-labels-idx1-ubyte.gz",
        ),
        (lambda at: lacking(write_cifar(at), "test_batch.bin"), "{at} lacks test_batch.bin"),
        (
            lambda at: damaged(write_idx(at), IDX["train"][0], b"no gzip"),
            "{at}/train-images-idx3-ubyte.gz is no sound gzip file: Not a gzipped file",
        ),
        (
            lambda at: damaged(write_idx(at), IDX["train"][0], idx(drawn(9, 7, 6)[0])[:-20]),
            "{at}/train-images-idx3-ubyte.gz is no sound gzip file",
        ),
        (
            lambda at: damaged(write_idx(at), IDX["train"][0], gzip.compress(b"\0\0\x08\x01\0\0")),
            "{at}/train-images-idx3-ubyte.gz is no IDX file of unsigned bytes, or a part of it is",
        ),
        (
            lambda at: damaged(write_idx(at), IDX["train"][0], gzip.compress(b"P5 7 6 255 ")),
            "{at}/train-images-idx3-ubyte.gz is no IDX file",
        ),
        (
            lambda at: damaged(write_idx(at), IDX["train"][1], idx(drawn(11)[1])),
            "train-images-idx3-ubyte.gz has shape (12, 7, 6) and train-labels-idx1-ubyte.gz (11,)",
        ),
        (
            lambda at: damaged(write_cifar(at), "test_batch.bin", bytes(3000)),
            "{at}/test_batch.bin has 3000 bytes, no multiple of the 3073 of an image with its",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, make, message):
    folder = make(tmp_path / "images")
    with pytest.raises(UsageError, match=re.escape(message.format(at=tmp_path / "images"))):
        read_images(folder)


# Batches


def numbered(count: int) -> Labelled:
    images = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Labelled(images, np.arange(count, dtype=np.int32))


def test_each_epoch_has_every_image_with_its_label_in_a_new_order():
    batches = shuffled_batches(numbered(12), batch_size=12, seed=0)
    first, second = next(batches), next(batches)
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch["label"]), np.arange(12))
        np.testing.assert_array_equal(epoch["image"].ravel(), epoch["label"])
    assert (first["label"] != second["label"]).any()


@pytest.mark.parametrize(("count", "size"), [(360, 360), (10_000, 400), (7, 7), (401, 1)])
def test_held_out_batches_hold_every_image_once_in_one_shape(count, size):
    batches = held_out_batches(Labelled(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count)))
    assert {len(batch["label"]) for batch in batches} == {size} <= set(range(MEASURED_AT_ONCE + 1))
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), np.arange(count))


# The network


@pytest.fixture(scope="module")
def network():
    build = nnx.jit(lambda: make_network(TINY, (8, 8, 3), 5, nnx.Rngs(0)))
    return build()


@pytest.mark.slow
def test_the_first_prediction_is_a_uniform_guess(network):
    logits = network(jax.random.normal(jax.random.key(0), (2, 8, 8, 3)))
    np.testing.assert_array_equal(logits, np.zeros((2, 5)))


@pytest.mark.slow
def test_optax_muon_evens_out_the_patches_of_a_convolution(network):
    parameters = nnx.state(network, nnx.Param)
    config = OptimizerConfig("optax-muon", warmup_steps=0, weight_decay=0.0)
    transform = make_optimizer(config, 10)
    keys = iter(jax.random.split(jax.random.key(1), 20))
    gradients = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), parameters)
    updates, _ = jax.jit(transform.update)(gradients, transform.init(parameters), parameters)
    for name, layer in nnx.to_pure_dict(updates).items():
        if "conv" in layer:
            kernel = np.asarray(layer["conv"]["kernel"])
            assert np.linalg.cond(kernel.reshape(-1, kernel.shape[-1])) < 2, name


def test_explain_names_the_kernels_that_muon_takes():
    config = images.Config(network=TINY)
    labels = {leaf.path: leaf.label for leaf in images.explain(config).leaves}
    muon = {path for path, label in labels.items() if label == "muon"}
    assert muon == {"stage_0/conv/kernel", "residual_0/conv/kernel"}


# Runs


def tiny(out: Path, **run) -> images.Config:
    settings = {"steps": 6, "eval_every": 2, "checkpoint_every": 3, "quiet": True, "out": out}
    return images.Config(
        images=ImageConfig(batch_size=32, target_accuracy=0.2),
        network=TINY,
        optimizer=OptimizerConfig("adamw", warmup_steps=0, schedule="constant"),
        run=RunConfig(**{**settings, **run}),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("images") / "run")
    return config, images.train(config)


@pytest.mark.slow
def test_a_run_measures_the_held_out_accuracy(finished):
    config, result = finished
    folder = RunFolder(config.run.out)
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    written = {row["step"]: row["held_out/accuracy"] for row in rows if "held_out/loss" in row}
    assert written == result.accuracy
    assert list(written) == [2, 4, 6]
    held_out = read_images(None).held_out
    (batch,) = held_out_batches(held_out)
    data = read_images(None).train.images
    normalised = (jnp.asarray(batch["image"], jnp.float32) - data.mean()) / data.std()
    named = result.run.model(normalised).argmax(-1)
    assert result.accuracy[6] == pytest.approx((named == held_out.labels).mean())
    assert (folder.path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_process_beside_the_first_resumes_a_finished_run_too(finished, monkeypatch):
    monkeypatch.setattr(Devices, "first", False)  # the run has no earlier metrics
    config, unbroken = finished
    resumed = images.train(replace(config, run=replace(config.run, resume=True)))
    assert math.isnan(resumed.step_seconds)
    weights = [nnx.to_pure_dict(nnx.state(each.run.model)) for each in (resumed, unbroken)]
    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.slow
def test_the_report_says_when_the_target_was_reached(finished, capsys):
    _, result = finished
    known = replace(result, accuracy={2: 0.5, 4: 0.8, 6: 0.9}, step_seconds=0.25)
    report(known, 0.75)
    printed = capsys.readouterr().out
    assert "held-out accuracy 0.9000 after 0.1 epochs = 6 steps" in printed
    assert "accuracy 0.75 after 0.1 epochs = 4 steps of 250 ms = 1.0 s" in printed
    assert str(result.run.folder.plot) in printed
    report(known, 0.95)
    assert "accuracy 0.95 was not reached; best 0.9000" in capsys.readouterr().out


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--optimizer muon-clip", "--optimizer muon-clip clips attention, and this model has none"),
        ("--batch-size 0", "--batch-size 0: give at least 1"),
        ("--target-accuracy 97", "--target-accuracy 97.0: give a share, above 0"),
        ("--stages 0", "--width, --stages and --stem-stride must be at least 1"),
        ("--data-dir missing", "--data-dir missing is no folder"),
    ],
)
def test_unusable_settings_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        images.main(arguments.split())
    assert list(tmp_path.iterdir()) == []
