"""The program with latent attention: its logs, the bound of QK-Clip, and wrong input."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import muon_jax
from muon_jax.attention import collect_max_logits
from trainer.errors import UsageError
from trainer.language import SampleConfig, TextConfig
from trainer.models.latent_attention import LatentAttention, LatentConfig, clip_target
from trainer.programs import mla
from trainer.records.logit_plots import plot_max_logits
from trainer.records.metrics import Metrics
from trainer.records.run_folder import RunFolder
from trainer.training import RunConfig

TINY = LatentConfig(
    width=16, layers=1, heads=2, query_latent=8, key_value_latent=6, content=4, rotary=2
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mla")
    (folder / "text.txt").write_text("the quick brown fox jumps over a lazy dog\n" * 60)
    return mla.Config(
        text=TextConfig(data=folder / "text.txt", context=16, batch_size=4),
        decoder=TINY,
        optimizer=mla.MuonClipConfig(threshold=0.5),
        run=RunConfig(steps=6, quiet=True, out=folder / "clipped"),
        sample=SampleConfig(sample_tokens=4),
    )


@pytest.mark.slow
def test_logs_every_head_and_clips_those_over_the_threshold(config):
    out = config.run.out
    alone = replace(
        config,
        optimizer=replace(config.optimizer, threshold=None),
        run=replace(config.run, out=out.with_name("alone")),
    )
    logged = {}
    for name, settings in (("clipped", config), ("alone", alone)):
        result = mla.train(settings)
        assert (settings.run.out / mla.PLOT).stat().st_size > 1000
        with Metrics(result.run.folder, start=6) as metrics:
            logged[name] = np.array(
                [
                    list(metrics.series(f"train/max_logits/blocks/0/attention/{head}").values())
                    for head in range(2)
                ]
            )
    assert logged["clipped"].shape == (2, 6)
    np.testing.assert_array_equal(logged["clipped"][:, 0], logged["alone"][:, 0])
    assert logged["clipped"].max() > 0.5  # at the start, before anything was clipped
    assert (logged["clipped"][:, 1:] < logged["alone"][:, 1:]).any()


@pytest.mark.slow
def test_the_target_bounds_latent_attention():
    attention = LatentAttention(TINY, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 12, TINY.width))
    graph, params = nnx.split(attention)

    @jax.jit
    def maxima(params):
        forward = nnx.capture(lambda layer: layer(x, report=True), nnx.Intermediate)
        return collect_max_logits(forward(nnx.merge(graph, params))[1])

    before = maxima(params)
    threshold = float(jnp.mean(before[""]))
    tx = muon_jax.clip_qk(threshold, {"": clip_target(TINY)})
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zeros, tx.init(params), params, max_logits=before)
    after = maxima(optax.apply_updates(params, updates))
    assert state.clipped_heads == 1
    np.testing.assert_allclose(after[""], np.minimum(before[""], threshold), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--threshold 0", "--threshold 0.0: give a number above 0, or None"),
        ("--rotary 3", "--rotary 3: features turn in pairs; give an even number"),
        ("--content 0", "--query-latent, --key-value-latent, --content and --rotary must be"),
    ],
)
def test_unusable_settings_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        mla.main(arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_only_runs_that_logged_can_be_drawn(tmp_path):
    with pytest.raises(UsageError, match="name at least one folder that `python"):
        plot_max_logits(tmp_path / "plot.png", [])
    folder = RunFolder(tmp_path)
    with pytest.raises(UsageError, match=r"settings\.json is missing or damaged"):
        plot_max_logits(tmp_path / "plot.png", [folder])
    folder.begin({"threshold": None}, overwrite=False)
    with pytest.raises(UsageError, match=r"cannot read .*metrics\.jsonl: No such file"):
        plot_max_logits(tmp_path / "plot.png", [folder])
    folder.metrics.write_text('{"step": 1, "train/loss": 2.0}\n')
    with pytest.raises(UsageError, match="logged no largest logits; train it with"):
        plot_max_logits(tmp_path / "plot.png", [folder])
