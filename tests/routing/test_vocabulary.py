"""The words of a path, and the pattern language of rules."""

import pytest

from muon_jax.routing._vocabulary import biases_of, layer_of, plain_name
from muon_jax.trees._patterns import matches, words_of


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("SelfAttention_0/query/kernel", ("selfattention_0", "query", "kernel")),
        ("self_attn.q_proj.weight", ("self_attn", "q_proj", "weight")),
        ("mlp/~/linear_0/w", ("mlp", "linear_0", "w")),
        ("/blocks//0/kernel/", ("blocks", "0", "kernel")),
        ("", ("",)),
        ("~", ("",)),
    ],
)
def test_the_words_of_a_path_in_any_library(path, words):
    assert words_of(path) == words


def test_a_final_word_for_the_array_is_no_part_of_the_layer():
    assert layer_of(("mlp", "up", "kernel")) == ("mlp", "up")
    assert layer_of(("mlp", "up")) == ("mlp", "up")
    assert layer_of(("norm", "scale"), "scale") == ("norm",)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("MultiHeadAttention_0", "multi_head_attention"),
        ("LMHead_12", "lm_head"),
        ("W_Q", "w_q"),
        ("QKV", "qkv"),
        ("Conv2D_1", "conv2d"),
        ("w_1", "w_1"),
        ("linear1", "linear1"),
        ("7", "0"),
    ],
)
def test_the_plain_name_of_a_word(word, name):
    assert plain_name(word) == name


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        ("kernel", "bias"),
        ("w", "b"),
        ("weight_1", "bias_1"),
        ("query_w", "query_b"),
        ("w1", "b1"),
        ("in_proj_weight", "in_proj_bias"),
        ("weight_ih_l0", "bias_ih_l0"),
        ("gate_up_proj", "gate_up_proj_bias"),
    ],
)
def test_the_bias_of_a_weight(weight, bias):
    assert ("layer", bias) in biases_of(("layer", weight), plain_name(weight))


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("*/kernel", ["kernel", "a/kernel", "a/b/kernel"], ["a_kernel", "kernel/a", "a/kernels"]),
        ("a/*", ["a/", "a/b", "a/b/c"], ["a", "b/a/c"]),
        ("a/*/c", ["a/c", "a/b/c", "a/b/b/c"], ["a/bc", "ac"]),
        ("*", ["", "a", "a/b"], []),
        ("w*", ["w", "wq"], ["q", "w/q"]),
        ("ln?", ["ln1"], ["ln", "ln12", "ln/"]),
        ("{query,key}/kernel", ["query/kernel", "key/kernel"], ["value/kernel", "query"]),
        ("Query", ["query"], ["Query"]),
        ("a,b/*", ["a", "b/c"], ["c", "a/c"]),
        ("a.b", ["a.b"], ["a/b", "axb"]),
    ],
)
def test_a_pattern_fits_whole_words(pattern, fitting, others):
    assert [text for text in fitting + others if matches(pattern, text)] == fitting
