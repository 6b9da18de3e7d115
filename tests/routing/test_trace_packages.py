"""Routes by loss and by name, of models built from the layers of four libraries.

Tables have patterns of paths and routes; the first pattern that matches decides.
"""

import fnmatch

import jax
import pytest
from differences import DIFFERENCES, check_differences
from forwards import FORWARDS
from package_models import PACKAGE_MODELS
from traces import in_words

from muon_jax import trace_axes

DENSE, FILTER, ALONE = "0|1", "0,1,2|3", "depthwise filter"
LANGUAGE = {"*embed*": "lookup table", "layers_2/kernel": "logits", "head/kernel": "logits"}
HEADS = {"*/bias": "elementwise", "*/out*/kernel": "0,1|2", "*attention_output*": "0,1|2"}
KERAS = {"*dwconv*": ALONE, "*depthwise*": ALONE, "predictions*": "logits", "logits*": "logits"}

EXPECTED = {
    "Linen LSTMCell": {**LANGUAGE, "*": DENSE},
    "Linen OptimizedLSTMCell": {**LANGUAGE, "*": DENSE},
    "Linen GRUCell": {**LANGUAGE, "*": DENSE},
    "Linen MGUCell": {**LANGUAGE, "*": DENSE},
    "Linen SimpleCell": {**LANGUAGE, "*": DENSE},
    "Linen ConvLSTMCell": {"*": f"{FILTER}/4"},
    "Linen attention": {**LANGUAGE, **HEADS, "*": "0|1,2"},
    "Linen general layers": {"*/bias": "elementwise", "layers_1/*": "0,1|2", "*": "0|1,2"},
    "Linen filters": {
        "*/bias": "elementwise",
        "layers_0/*": FILTER,
        "layers_1/*": f"{FILTER}/4",
        "layers_2/*": ALONE,
        "layers_3/*": "0,1,3|2",
        "layers_4/*": "2|3",
    },
    "Linen WeightNorm": {"*": DENSE},
    "Linen vmap": {"*/bias": "elementwise", "*": "1|2"},
    "NNX MultiHeadAttention": {**LANGUAGE, **HEADS, "back/*": "0,1|2", "*": "0|1,2"},
    "NNX LSTMCell": {**LANGUAGE, "*": DENSE},
    "NNX OptimizedLSTMCell": {**LANGUAGE, "*": "0|1/4"},
    "NNX GRUCell": {**LANGUAGE, "*": "0|1/3"},
    "NNX SimpleCell": {**LANGUAGE, "*": DENSE},
    "NNX LoRA": {"*": DENSE},
    "NNX filters": {"depth/*": ALONE, "*": FILTER},
    "NNX vmap": {"*/bias": "elementwise", "router/*": "router", "last/*": DENSE, "*": "1|2"},
    "Equinox MLP": {"*": "1|0"},
    "Equinox ensemble": {"*/bias": "elementwise", "*": "2|1"},
    "Equinox attention": {"*": "1|0"},
    "Equinox LSTMCell": {"*": "1|0/4"},
    "Equinox GRUCell": {"*": "1|0/3"},
    "Equinox filters": {"layers/1/*": ALONE, "layers/2/*": "1,2|0/2", "*": "1,2|0"},
    "Equinox WeightNorm": {"*": "1|0"},
    "Haiku transformer": {
        "embed/*": "lookup table",
        "*pos_embs": "elementwise",
        "linear_2/*": "logits",
        "*": DENSE,
    },
    "Haiku recurrent cells": {
        "embed/*": "lookup table",
        "gru/*": "0|1/3",
        "lstm/*": "0|1/4",
        "linear/*": "logits",
        "*": DENSE,
    },
    "Haiku Conv2DLSTM": {"*": f"{FILTER}/4"},
    "Haiku VectorQuantizer": {"*embeddings": "lookup table", "*": DENSE},
    "Haiku ResNet18": {"*logits*": "logits", "*shortcut*": "2|3", "*": FILTER},
    "Haiku MobileNetV1": {
        "*logits*": "logits",
        "*depthwise*": ALONE,
        "*pointwise*": "2|3",
        "*": FILTER,
    },
    "Keras encoder": {
        "*embeddings": "lookup table",
        **HEADS,
        "gru/*": "0|1/3",
        "*lstm*": "0|1/4",
        "dense/*": "logits",
        "*depthwise*": ALONE,
        "*pointwise*": "1|2",
        "multi*": "0|1,2",
        "*": DENSE,
    },
    "Keras ConvNeXtTiny": {"*head*": "logits", **KERAS, "*pointwise*": DENSE, "*": FILTER},
    "Keras EfficientNetB0": {**KERAS, "stem*": FILTER, "*": "2|3"},
    "Keras MobileNetV3Small": {**KERAS, "conv/*": FILTER, "*": "2|3"},
    "Keras ResNet50": {**KERAS, "*conv1_conv*": FILTER, "*_2_conv/*": FILTER, "*": "2|3"},
}


def test_there_is_an_answer_for_every_model():
    assert EXPECTED.keys() == PACKAGE_MODELS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_every_leaf_is_read_and_differs_from_names_as_listed(name):
    with jax.numpy_rank_promotion("allow"):
        loss, params, args = PACKAGE_MODELS[name]()
        traced = trace_axes(loss, params, *args)
    found = in_words(traced)
    expected = {
        path: next(
            answer for pattern, answer in EXPECTED[name].items() if fnmatch.fnmatch(path, pattern)
        )
        for path in found
    }
    assert found == expected
    assert found
    check_differences(name, traced)


def test_every_listed_difference_is_of_a_model():
    assert {model for model, _ in DIFFERENCES} <= FORWARDS.keys() | PACKAGE_MODELS.keys()
