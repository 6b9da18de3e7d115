"""The default rules on the names and shapes of many libraries, models and layers."""

import re

import jax
import optax
import pytest
from known_edges import EDGES, READINGS
from known_ends import ENDS
from known_layers import LAYERS as KNOWN_LAYERS
from known_models import MODELS as KNOWN_MODELS
from known_stacks import STACKS
from routes import shown, tree_of

import muon_jax
from muon_jax.routing._route import matrix_axes, route
from muon_jax.transforms._sides import check_sides
from muon_jax.trees._patterns import words_of
from muon_jax.views._matrix_axes import MatrixAxes

MODELS = {**KNOWN_MODELS, **KNOWN_LAYERS, **EDGES, **ENDS, **STACKS}


@pytest.mark.parametrize("name", MODELS)
def test_default_rules(name):
    model = MODELS[name]
    params = tree_of({path: shape for path, (shape, _) in model.items()})
    routes = jax.tree.leaves(route(params, ambiguous="fallback"))
    assert {leaf.path: shown(leaf) for leaf in routes} == {
        path: expected for path, (_, expected) in model.items()
    }


UNSHOWN = {"c_attn/weight"}
"""Stacks of heads, fused along an axis of their own: one of too many readings."""


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_changes_no_view_or_asks(name):
    """But for the sides of a matrix that is stored against its name, which few scales look at."""
    params = tree_of({path: shape for path, (shape, _) in MODELS[name].items()})
    whole = route(params, ambiguous="fallback")
    masked = jax.tree.map(
        lambda leaf, found: leaf if found.axes else optax.MaskedNode(), params, whole
    )
    wanted = {leaf.path: leaf.axes for leaf in jax.tree.leaves(whole)}
    for leaf in jax.tree.leaves(route(masked, ambiguous="fallback")):
        view = wanted[leaf.path]
        turned = leaf.axes and MatrixAxes(leaf.axes.cols, leaf.axes.rows)
        if leaf.rule == "ambiguous":
            assert view in offered(masked, leaf) or leaf.path in UNSHOWN
            continue
        assert view in (leaf.axes, turned)
        if view != leaf.axes:
            with pytest.raises(ValueError, match=f"which side of .*{leaf.path}.* is the inputs"):
                check_sides(masked, views_of(masked), "spectral", call="muon")


def offered(params, leaf):
    """The views of a leaf that the error shows."""
    with pytest.raises(ValueError, match="reading that fits") as caught:
        route(params)
    lines = re.findall(r"Rule\(.*\)(?=  #)", str(caught.value))
    rules = [eval(line, vars(muon_jax)) for line in lines]
    ndim = len(leaf.shape)
    return [
        MatrixAxes([a % ndim for a in to.rows], [a % ndim for a in to.cols], to.split)
        for to in (rule.to for rule in rules if rule.fits("/".join(words_of(leaf.path))))
    ]


def views_of(params):
    return [leaf.axes for leaf in jax.tree.leaves(route(params, ambiguous="fallback"))]


@pytest.mark.parametrize(("layer", "readings"), READINGS.values(), ids=READINGS)
def test_an_error_shows_every_reading_as_the_line_to_write(layer, readings):
    params, path = tree_of(layer), next(iter(layer))
    with pytest.raises(ValueError, match=f"{path} .* (can be read|may be)") as caught:
        route(params)
    lines = re.findall(r"Rule\(.*\)(?=  #)", str(caught.value))
    rules = [eval(line, vars(muon_jax)) for line in lines]
    found = (matrix_axes(params, rules=[rule]) for rule in rules)
    assert [jax.tree.leaves(views) for views in found] == [[view] for view in readings]
