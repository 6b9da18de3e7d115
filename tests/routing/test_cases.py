"""The default rules on names and shapes of many libraries, models and layers, and their laws.

`cases.json` has trees, with the shape and the route of every path. A route is a view as in
`routes`, `-` for the fallback, or `?` for ambiguous. Its `models` have the names and shapes of the
authors; `layers` are single layers and cases that two rules could decide.
"""

import json
import re
from pathlib import Path

import jax
import pytest
from architectures import ARCHITECTURES
from routes import array, shown, tree_of

import muon_jax
from muon_jax.optimizers._muon import TABLE_RATES
from muon_jax.routing import _route
from muon_jax.routing._route import label_params, matrix_axes, route
from muon_jax.routing._rule import Rule
from muon_jax.views._matrix_axes import MatrixAxes

CASES = json.loads((Path(__file__).parent / "cases.json").read_text(encoding="utf-8"))
TREES = {
    name: {
        path: (tuple(int(size) for size in shape.split("x") if size), view)
        for path, (shape, view) in tree.items()
    }
    for group in CASES.values()
    for name, tree in group.items()
}


def shapes_of(name):
    return tree_of({path: shape for path, (shape, _) in TREES[name].items()})


def routes_of(params):
    return {each.path: shown(each) for each in jax.tree.leaves(route(params, ambiguous="fallback"))}


@pytest.mark.parametrize("name", TREES)
def test_default_rules(name):
    expected = {path.removesuffix("/value"): view for path, (_, view) in TREES[name].items()}
    assert routes_of(shapes_of(name)) == expected


def gallery():
    """Returns whole models: the architectures, and the models of the cases."""
    return [make() for make in ARCHITECTURES.values()] + [*map(shapes_of, CASES["models"])]


def decisions(routes):
    """Returns the route of every path, and the factor on its learning rate."""
    return {each.path: (shown(each), TABLE_RATES.get(each.rule)) for each in routes}


def test_every_rule_decides_a_model(monkeypatch):
    def routed(model):
        return jax.tree.leaves(route(model, ambiguous="fallback"))

    models, rules = [(model, routed(model)) for model in gallery()], _route.DEFAULT_RULES
    idle = []
    for dropped in rules[:-1]:
        remaining = tuple(rule for rule in rules if rule is not dropped)
        monkeypatch.setattr(_route, "DEFAULT_RULES", remaining)
        _route.default_rules_for.cache_clear()
        decided = [pair for pair in models if any(each.rule == dropped.name for each in pair[1])]
        if all(decisions(routed(model)) == decisions(old) for model, old in decided):
            idle.append((dropped.name, dropped.pattern))
    _route.default_rules_for.cache_clear()
    assert idle == []


UNRELATED = {"scale": array(7919), "other": {"kernel_of_its_own": array(7901, 7907)}}


def test_an_unrelated_leaf_changes_no_route():
    for model in gallery():
        both = routes_of({"model": model, "unrelated": UNRELATED})
        alone = routes_of({"model": model})
        assert {path: both[path] for path in alone} == alone


CANDIDATES = {
    # name: (its layer, the ambiguous array first, all its candidates)
    "three squares, perhaps head by head": (
        {"attn/query_key_value/kernel": (8, 24)},
        [MatrixAxes(-2, -1, split=3), MatrixAxes(-2, -1)],
    ),
    "perhaps three of one width": (
        {"attn/qkv/kernel": (8, 15)},
        [MatrixAxes(-2, -1), MatrixAxes(-2, -1, split=3)],
    ),
    "not three of one width": ({"attn/qkv/kernel": (8, 16)}, [MatrixAxes(-2, -1)]),
    "perhaps three times two heads": (
        {"attn/qkv/kernel": (8, 6, 4)},
        [MatrixAxes(-3, (-2, -1)), MatrixAxes(-3, (-2, -1), split=3)],
    ),
    "perhaps three of four in either head": (
        {"attn/qkv/kernel": (8, 2, 12)},
        [MatrixAxes(-3, (-2, -1))],
    ),
    "three along one axis or the other": (
        {"attn/qkv/kernel": (8, 3, 3)},
        [MatrixAxes(-3, (-2, -1)), MatrixAxes(-3, -1), MatrixAxes(-3, -2)],
    ),
    "a stack of matrices, or one, with outputs first": (
        {"mix/weight": (2, 3, 4)},
        [MatrixAxes(-1, -2), MatrixAxes((-2, -1), -3), MatrixAxes(-1, (-3, -2))],
    ),
}


def lines_of(message):
    """Returns the rules that an error shows."""
    return [eval(line, vars(muon_jax)) for line in re.findall(r"Rule\(.*\)(?=  #)", message)]


@pytest.mark.parametrize(("layer", "views"), CANDIDATES.values(), ids=CANDIDATES)
def test_an_error_shows_every_candidate_view_as_the_line_to_write(layer, views):
    params, path = tree_of(layer), next(iter(layer))
    with pytest.raises(ValueError, match=f"{path} .* (can be read|may be)") as caught:
        route(params)
    found = [matrix_axes(params, rules=[rule]) for rule in lines_of(str(caught.value))]
    assert [jax.tree.leaves(each) for each in found] == [[view] for view in views]


AMBIGUOUS = {
    "layers that differ in a number": {"mixer": [{"mix": array(2, 3, 4)}, {"mix": array(2, 3, 4)}]},
    "the whole tree": array(3, 4, 6),
    "one of a list": [array(4, 6), array(6), array(3, 4, 6)],
    "one of a tuple": (array(3, 4, 6), array(6)),
    "one of two numbered layers": [{"mix": array(2, 3, 4)}, {"mix": array(3, 4)}],
    "numbered layers of several ranks": [{"mix": array(2, 3, 4)}, {"mix": array(2, 3, 4, 5)}],
    "a stack": {"norm": array(3, 4), "mix": array(3, 4, 5, 6)},
    "a name with the letters of patterns": {"a,b*{c}": array(2, 3, 4)},
}


@pytest.mark.parametrize("params", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_any_line_that_an_error_shows_works(params):
    with pytest.raises(ValueError, match="can be read") as caught:
        label_params(params)
    assert jax.tree.leaves(label_params(params, ambiguous="fallback"))
    by_pattern = {}
    for rule in lines_of(str(caught.value)):
        by_pattern.setdefault(rule.pattern, []).append(rule)
    for rules in zip(*by_pattern.values(), strict=False):
        routes = jax.tree.leaves(route(params, rules=rules))
        before = jax.tree.leaves(route(params, ambiguous="fallback"))
        assert [not each.by_default for each in routes] == [
            bool(each.candidates) for each in before
        ]


def test_layers_that_differ_in_a_number_share_a_line():
    with pytest.raises(ValueError, match=r"mixer/0/mix .*, mixer/1/mix ") as caught:
        label_params(AMBIGUOUS["layers that differ in a number"])
    assert [rule.pattern for rule in lines_of(str(caught.value))] == ["mixer/*/mix"] * 3


def test_a_function_may_leave_a_stack_to_the_user():
    views = MatrixAxes(-2, -1), MatrixAxes(-1, -2)
    params = {"norm": {"scale": array(3, 4)}, "up": {"kernel": array(3, 4, 6)}}
    rules = [Rule("*/kernel", lambda leaf: views)]
    with pytest.raises(ValueError, match=r"up/kernel .* can be read") as caught:
        label_params(params, rules=rules)
    assert [rule.to for rule in lines_of(str(caught.value))] == [*views]


def test_a_rule_sees_one_layer_of_a_stack():
    seen = []
    params = {"norm": {"scale": array(3, 4)}, "up": {"kernel": array(3, 4, 6)}}
    route(params, rules=[Rule("*/kernel", seen.append)])
    (leaf,) = seen
    assert isinstance(leaf, muon_jax.Leaf)
    assert (leaf.path, leaf.shape, leaf.stack, leaf.layer_shape) == (
        "up/kernel",
        (3, 4, 6),
        (0,),
        (4, 6),
    )
