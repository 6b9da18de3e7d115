"""The decorator of public factories: names in errors, and signatures."""

import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import muon_jax
from muon_jax import _checks, recipes
from muon_jax.transforms._door import public


@public("inner")
def inner(rate: float = 1.0, *, kind: str = "plain"):
    return _checks.call_in_progress(), rate, kind


@public("outer", passes_to=inner)
def outer(rate: float = 2.0, **rest):
    return inner(rate, **rest)


def test_the_outermost_call_gives_the_name():
    assert inner() == ("muon_jax.inner", 1.0, "plain")
    assert outer(kind="other") == ("muon_jax.outer", 2.0, "other")
    assert inner() == ("muon_jax.inner", 1.0, "plain")


def test_a_signature_has_the_arguments_that_are_passed_on():
    assert list(inspect.signature(outer).parameters) == ["rate", "kind"]
    assert str(inspect.signature(inner)) == "(rate: float = 1.0, *, kind: str = 'plain')"
    with pytest.raises(TypeError, match="nosuch"):
        outer(nosuch=1)


def test_bound_arguments_leave_the_defaults_of_another_factory_to_it():
    bound = inspect.signature(outer).bind()
    bound.apply_defaults()
    assert bound.arguments == {"rate": 2.0}


def test_what_a_signature_boxes_comes_out_again():
    bound = inspect.signature(outer).bind(kind=abs)
    assert not callable(bound.arguments["kind"])
    assert outer(**bound.arguments) == ("muon_jax.outer", 2.0, abs)


@pytest.mark.parametrize("number", [np.float32(0.5), np.asarray(0.5), np.int64(1), np.bool_(True)])
def test_scalars_of_numpy_become_python_numbers(number):
    _, rate, _ = inner(number)
    assert type(rate) in (bool, int, float)
    assert rate == number


def test_arrays_stay():
    array, traced = np.ones(2), jnp.ones(())
    assert inner(array)[1] is array
    assert inner(traced)[1] is traced


AT_ONCE = {
    "recipes.keller(learning_rate=-1.0)": lambda: recipes.keller(-1.0),
    "recipes.procrustes(learning_rate=-1.0)": lambda: recipes.procrustes(-1.0),
    "recipes.kimi_k2(scale='big')": lambda: recipes.kimi_k2(scale="big"),
    "recipes.torch(momentum=2)": lambda: recipes.torch(momentum=2),
    "recipes.moonlight(fallback_learning_rate=0.1)": lambda: recipes.moonlight(
        fallback_learning_rate=0.1
    ),
    "muon_clip(weight_decay=-0.1)": lambda: muon_jax.muon_clip(1.0, weight_decay=-0.1),
    "muon(fallback_learning_rate=-1)": lambda: muon_jax.muon(1.0, fallback_learning_rate=-1),
}


@pytest.mark.parametrize(("call", "make"), AT_ONCE.items())
def test_a_recipe_names_itself(call, make):
    with pytest.raises(ValueError, match="muon_jax") as caught:
        make()
    assert str(caught.value).startswith(f"muon_jax.{call}: ")


@pytest.mark.parametrize("factory", [recipes.keller, recipes.moonlight, recipes.optax])
def test_a_recipe_names_itself_at_init_too(factory):
    name = "optax" if factory is recipes.optax else factory.__name__
    rules = [muon_jax.Rule("*/typo", "adamw")]
    with pytest.raises(ValueError, match=f"^muon_jax.recipes.{name}: no parameter fits"):
        factory(0.1, rules=rules).init({"kernel": jnp.ones((2, 3))})


@pytest.mark.parametrize("make", [muon_jax.newton_schulz, muon_jax.polar_by_svd, muon_jax.polar_to])
def test_a_factory_of_orthogonalizers_that_is_not_called_is_refused(make):
    said = rf"orthogonalizer={make.__name__} is not called. Give its result: .*{make.__name__}\("
    for factory in (muon_jax.muon, recipes.optax):
        with pytest.raises(TypeError, match=said):
            factory(0.1, orthogonalizer=make)
    with pytest.raises(TypeError, match="Frozen is not called"):
        muon_jax.muon(0.1, orthogonalizer=Frozen)


class Frozen:
    def __call__(self, matrices):
        return matrices


class Counted(Frozen):
    """Has a number as `flops`, not a function of the shape."""

    flops = 12


def test_flops_that_are_a_number_are_left_alone():
    tx, params = muon_jax.scale_by_muon(orthogonalizer=Counted()), {"kernel": jnp.ones((2, 3))}
    assert tx.update(params, tx.init(params))[0]["kernel"].shape == (2, 3)


OPTAX_NAMES = set(inspect.signature(optax.contrib.muon).parameters)


@pytest.mark.parametrize(
    "name", sorted(OPTAX_NAMES - set(inspect.signature(muon_jax.muon).parameters))
)
def test_an_argument_of_optax_names_the_one_to_give_here(name):
    for factory in (muon_jax.muon, muon_jax.muon_clip):
        with pytest.raises(TypeError, match=f"{name}'. (Give|Leave)"):
            factory(1e-3, **{name: 1})
