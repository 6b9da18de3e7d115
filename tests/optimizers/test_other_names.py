"""Arguments that `muon` and the recipes do not have."""

import pytest

import muon_jax


@pytest.mark.parametrize("call", [muon_jax.muon, muon_jax.recipes.moonlight])
@pytest.mark.parametrize(
    ("argument", "remedy"), [("ns_steps", "newton_schulz"), ("weight_decy", "'weight_decay'")]
)
def test_an_unknown_argument_is_refused_with_what_to_write(call, argument, remedy):
    name = call.__name__ if call is muon_jax.muon else f"recipes.{call.__name__}"
    with pytest.raises(TypeError, match=rf"muon_jax.{name}: there is no .*{argument}.*{remedy}"):
        call(0.1, **{argument: 3})
