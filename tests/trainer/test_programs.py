"""Every program of the trainer, from its command line to its output files, for two steps."""

import sys

import pytest

from trainer import __main__ as trainer
from trainer.errors import UsageError
from trainer.programs import finetune, images, lm, mla, moe, plot_max_logits
from trainer.records.run_folder import RunFolder

STEPS = "--steps 2 --eval-every 1 --quiet"
TEXT = "--context 16 --batch-size 2 --sample-tokens 4"
TINY = "--width 16 --layers 1 --heads 2"
LATENT = "--query-latent 8 --key-value-latent 6 --content 4 --rotary 2"


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    """Runs a program for two steps, checks its output files, and returns its folder."""
    home = tmp_path_factory.mktemp("programs")

    def start(program, options):
        folder = RunFolder(home / program.__name__)
        program.main(f"{options} {STEPS} --out {folder.path}".format(texts=texts).split())
        assert folder.metrics.read_text().count('"train/loss"') == 2
        assert folder.metrics.read_text().count('"held_out/loss"') == 2
        assert folder.plot.read_bytes().startswith(b"\x89PNG")
        assert (folder.checkpoints / "2").is_dir()
        return folder

    return start


@pytest.fixture(scope="module")
def pretrained(run):
    return run(lm, f"--data {{texts}} {TEXT} {TINY}")


def test_lm(pretrained, capsys):
    assert pretrained.sample.exists()


@pytest.mark.slow
def test_finetune(run, pretrained, capsys):
    options = f"--from {pretrained.path} --data {{texts}} --old-data {{texts}}"
    run(finetune, f"{options} --batch-size 2 --sample-tokens 4")
    assert "new text" in capsys.readouterr().out


def test_images(run, capsys):
    run(images, "--width 2 --stages 1 --batch-size 8")
    assert "held-out accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_moe(run, capsys):
    run(moe, f"--data {{texts}} {TEXT} {TINY} --experts 4")
    assert "blocks/0/mlp" in capsys.readouterr().out


@pytest.mark.slow
def test_mla_and_its_plot(run, tmp_path, capsys):
    folder = run(mla, f"--data {{texts}} {TEXT} {TINY} {LATENT}")
    plot_max_logits.main([str(folder.path), "--out", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--help"], 0), (["train"], 1)])
def test_without_a_program_the_programs_are_listed(monkeypatch, capsys, arguments, status):
    monkeypatch.setattr(trainer.sys, "argv", ["trainer", *arguments])
    with pytest.raises(SystemExit) as ended:
        trainer.main()
    assert ended.value.code == status
    assert capsys.readouterr().out == f"{trainer.USAGE}\n"


def test_a_program_whose_packages_are_missing_says_how_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for module in ("programs.moe", "records.load_plots"):
        monkeypatch.delitem(sys.modules, f"trainer.{module}")
    monkeypatch.setattr(trainer.sys, "argv", ["trainer", "moe"])
    with pytest.raises(UsageError, match=r"moe needs the package matplotlib.* --group trainer"):
        trainer.main()
