"""Writes the final weights of PyTorch's Muons in the run of `tests/reference_runs.py`.

    pip install torch==2.13.0
    git clone https://github.com/KellerJordan/Muon keller
    git clone https://github.com/MoonshotAI/Moonlight moonlight
    PYTHONPATH=tests python -m golden.write_torch --keller keller --moonlight moonlight

One file, `torch.npz`: an array for each "run/weight", and "about" with the versions.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling Moonlight's would change its rounding

import numpy as np
import reference_runs as run
import torch  # pyright: ignore[reportMissingImports]

FILE = Path(__file__).resolve().parent / "torch.npz"
TORCH_RUNS = {
    "torch_original": {"adjust_lr_fn": "original"},
    "torch_match_rms": {"adjust_lr_fn": "match_rms_adamw"},
    "torch_plain": {"adjust_lr_fn": "original", "nesterov": False},
}


def parameters(names: Any) -> dict[str, Any]:
    start = run.weights()
    return {name: torch.nn.Parameter(torch.tensor(start[name])) for name in names}


def train(params: dict[str, Any], optimizer: Any, steps: range) -> None:
    for step in steps:
        gradients = run.gradients(step)
        for name, param in params.items():
            param.grad = torch.tensor(gradients[name])
        optimizer.step()


def arrays(run_name: str, values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {f"{run_name}/{name}": value.detach().numpy().copy() for name, value in values.items()}


def torch_runs() -> dict[str, np.ndarray]:
    found = {}
    for name, options in TORCH_RUNS.items():
        params = parameters(run.MATRICES)
        optimizer = torch.optim.Muon(
            params.values(),
            lr=run.RATE,
            weight_decay=run.DECAY,
            momentum=run.MOMENTUM,
            **options,
        )
        train(params, optimizer, range(run.HALFWAY))
        if name == "torch_original":
            buffers = {key: optimizer.state[p]["momentum_buffer"] for key, p in params.items()}
            found |= arrays("torch_halfway", params) | arrays("torch_buffer", buffers)
        train(params, optimizer, range(run.HALFWAY, run.STEPS))
        found |= arrays(name, params)
    return found


def keller_run(module: Any) -> dict[str, np.ndarray]:
    params = parameters(run.SHAPES)
    matrices = [param for param in params.values() if param.ndim >= 2]
    vectors = [param for param in params.values() if param.ndim < 2]
    optimizer = module.SingleDeviceMuonWithAuxAdam(
        [
            {"params": matrices, "use_muon": True, "lr": run.RATE, "weight_decay": run.DECAY},
            {"params": vectors, "use_muon": False, "lr": run.ADAM_RATE, "weight_decay": run.DECAY},
        ]
    )
    train(params, optimizer, range(run.STEPS))
    return arrays("keller", params)


def moonlight_run(module: Any) -> dict[str, np.ndarray]:
    params = parameters((*run.MATRICES, "vector"))
    optimizer = module.Muon(
        lr=run.RATE,
        wd=run.DECAY,
        muon_params=[params[name] for name in run.MATRICES],
        adamw_params=[params["vector"]],
    )
    train(params, optimizer, range(run.STEPS))
    return arrays("moonlight", params)


def load(path: Path) -> ModuleType:
    # Modules that Moonlight's example imports for its data set; the optimizer does not need them.
    for absent in ("loguru", "datasets", "transformers", "tqdm"):
        sys.modules.setdefault(absent, MagicMock())
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keller", type=Path, required=True, help="clone of KellerJordan/Muon")
    parser.add_argument("--moonlight", type=Path, required=True, help="clone of Moonlight")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = torch_runs()
    found |= keller_run(load(options.keller / "muon.py"))
    found |= moonlight_run(load(options.moonlight / "examples/toy_train.py"))
    about = {
        "torch": torch.__version__,
        "KellerJordan/Muon": commit(options.keller),
        "MoonshotAI/Moonlight": commit(options.moonlight),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    np.savez_compressed(FILE, about=json.dumps(about), allow_pickle=False, **found)
    print(f"{FILE}: {len(found)} arrays, {FILE.stat().st_size} bytes, {about}")


if __name__ == "__main__":
    main()
