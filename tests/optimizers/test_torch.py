"""torch.optim.Muon itself and the recipe, and runs that continue from one in the other.

`tests/golden` holds the same comparison for machines without PyTorch; here it is live, for whatever
release is installed: `python -m pip install --group torch`, then `pytest -m torch`.
"""

from typing import Any

import pytest
import reference_runs as run
from recipe_runs import from_jax, to_jax, trained

import muon_jax
from muon_jax import migrate, recipes

torch = pytest.importorskip("torch", reason="PyTorch is not installed: comparisons are with golden")
pytestmark = pytest.mark.torch

START = run.weights()
MATRICES = {name: START[name] for name in run.MATRICES}
PARAMS = to_jax(MATRICES)
AXES = muon_jax.matrix_axes(PARAMS)
NAMED = {f"{name}/kernel": name for name in MATRICES}
FIRST, SECOND = range(run.HALFWAY), range(run.HALFWAY, run.STEPS)

# bfloat16 moves the end of this run by 2e-3 to 4e-3 of its way, and muon_jax's own rounding of
# "large" by as much again; see test_parity_torch, which derives both case by case.
ROUNDING = 1e-2


def torch_run(options: dict[str, Any], weights: Any, steps: range, state_dict: Any = None) -> Any:
    params = {name: torch.nn.Parameter(torch.tensor(weight)) for name, weight in weights.items()}
    optimizer = torch.optim.Muon(
        list(params.items()), lr=run.RATE, weight_decay=run.DECAY, momentum=run.MOMENTUM, **options
    )
    if state_dict is not None:
        optimizer.load_state_dict(state_dict(optimizer.state_dict()))
    for step in steps:
        gradients = run.gradients(step)
        for name, param in params.items():
            param.grad = torch.tensor(gradients[name])
        optimizer.step()
    ends = {name: param.detach().numpy().copy() for name, param in params.items()}
    return ends, optimizer.state_dict()


def assert_ends_meet(found: Any, expected: Any) -> None:
    for name, weight in expected.items():
        assert run.distance(found[name], weight, START[name]) < ROUNDING, name


OPTIONS = [{"adjust_lr_fn": "original"}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False}]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=["original", "rms", "plain"])


@each_option
def test_the_recipe_ends_where_torch_does(options):
    tx = recipes.torch(run.RATE, weight_decay=run.DECAY, **options)
    assert_ends_meet(
        from_jax(trained(tx, PARAMS)[0]), torch_run(options, MATRICES, range(run.STEPS))[0]
    )


@each_option
def test_a_run_crosses_from_torch(options):
    tx = recipes.torch(run.RATE, weight_decay=run.DECAY, **options)
    halfway, state_dict = torch_run(options, MATRICES, FIRST)
    params = to_jax(halfway)
    state = migrate.from_torch(state_dict, tx.init(params), NAMED, axes=AXES, steps=run.HALFWAY)
    expected, _ = torch_run(options, MATRICES, range(run.STEPS))
    assert_ends_meet(from_jax(trained(tx, params, state, SECOND)[0]), expected)


@each_option
def test_a_run_crosses_to_torch(options):
    tx = recipes.torch(run.RATE, weight_decay=run.DECAY, **options)
    params, state = trained(tx, PARAMS, steps=FIRST)

    def filled(fresh: Any) -> Any:
        state_dict = migrate.to_torch(state, fresh, NAMED, axes=AXES)
        for entry in state_dict["state"].values():
            entry["momentum_buffer"] = torch.from_numpy(entry["momentum_buffer"])
        return state_dict

    found, _ = torch_run(options, from_jax(params), SECOND, filled)
    expected, _ = torch_run(options, MATRICES, range(run.STEPS))
    assert_ends_meet(found, expected)


def test_a_bfloat16_buffer_is_refused_with_the_remedy():
    buffer = torch.zeros(24, 24, dtype=torch.bfloat16)
    state_dict = {"state": {0: {"momentum_buffer": buffer}}, "param_groups": [{"params": [0]}]}
    params = {"square": PARAMS["square"]}
    fresh = muon_jax.muon(run.RATE).init(params)
    with pytest.raises(TypeError, match=r"Replace it by `buffer.float\(\).cpu\(\).numpy\(\)`"):
        migrate.from_torch(
            state_dict, fresh, {"square/kernel": 0}, axes=muon_jax.matrix_axes(params), steps=1
        )
