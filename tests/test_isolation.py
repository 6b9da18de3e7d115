"""Reading a file runs no code, and nothing is downloaded: in the source and at run time."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for part in ("muon_jax", "examples", "trainer") for path in (ROOT / part).rglob("*.py")
)

PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LOADERS = {"np.load": "allow_pickle", "numpy.load": "allow_pickle", "jnp.load": "allow_pickle"}
LOADERS |= {"torch.load": "weights_only"}
SAFE = {"allow_pickle": False, "weights_only": True}

SENTRY = """
import os, sys
def refuse(event, arguments):
    if event in {refused!r}:
        os.write(2, f"{{event}}{{arguments}}".encode())
        os._exit(3)
sys.addaudithook(refuse)
"""
NETWORK = ["socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto", "urllib.Request"]
NETWORK += ["socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname"]
UNPICKLING = ["pickle.find_class"]

STEP = """
import jax, jax.numpy as jnp, muon_jax
params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
tx = muon_jax.muon(0.1)
jax.jit(tx.update)(params, tx.init(params), params)
"""
TRAINER = """
import runpy
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""
TINY = "--width 16 --layers 1 --heads 2 --context 16 --batch-size 4 --steps 2 --quiet --out run"


def unsafe(source: str) -> Iterator[str]:
    """Returns the imports and calls of a module that can run code from a file."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.partition(".")[0] in PICKLING)
        if isinstance(node, ast.Call) and (call := ast.unparse(node.func)) in LOADERS:
            wanted = LOADERS[call]
            given = {each.arg: each.value for each in node.keywords}.get(wanted)
            if not (isinstance(given, ast.Constant) and given.value is SAFE[wanted]):
                yield call


def guarded(
    program: str, refused: list[str], *arguments: str, **run
) -> subprocess.CompletedProcess:
    """Runs a program that exits with status 3 at the first forbidden audit event."""
    program = SENTRY.format(refused=set(refused)) + program
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **run)


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_module_can_run_what_a_file_says(path):
    assert list(unsafe(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["pickle"]),
        ("def restore():\n    from joblib import load", ["joblib"]),
        ("import dill.source as source", ["dill.source"]),
        ("np.load(file)", ["np.load"]),
        ("np.load(file, allow_pickle=True)", ["np.load"]),
        ("np.load(file, allow_pickle=False)", []),
        ("torch.load(file)", ["torch.load"]),
        ("torch.load(file, weights_only=True)", []),
        ("import json, numpy\nmodel.load(file)", []),
    ],
)
def test_the_scan_finds(source, found):
    assert list(unsafe(source)) == found


def test_a_step_opens_no_connection_and_no_pickle():
    run = guarded(STEP, NETWORK + UNPICKLING)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.slow
def test_a_run_of_the_trainer_opens_no_connection(texts, tmp_path):
    run = guarded(TRAINER, NETWORK, "lm", "--data", str(texts), *TINY.split(), cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    ("program", "event"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "socket.getaddrinfo"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "socket.connect"),
        ("import urllib.request as r; r.urlopen('http://127.0.0.1:9')", "urllib.Request"),
        ("import pickle; pickle.loads(pickle.dumps(print))", "pickle.find_class"),
    ],
)
def test_the_sentry_stops(program, event):
    run = guarded(program, NETWORK + UNPICKLING)
    assert run.returncode == 3
    assert run.stderr.startswith(event)
