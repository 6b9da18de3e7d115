"""The exact output of `explain`: the table, its units, its JSON."""

import pytest
from routes import tree_of

import muon_jax
from muon_jax import MatrixAxes, Rule, Split, newton_schulz, polar_by_svd
from muon_jax.explain._explanation import _binary, _decimal

PARAMS = tree_of(
    {
        "h/0/up/kernel": (4, 16),
        "h/1/up/kernel": (4, 16),
        "h/0/qkv/kernel": (4, 12),
        "kv": (4, 6),
        "temperature": (),
    }
)
TABLE = """\
parameter       leaves  shape   goes to  matrices            rule             inputs -> outputs\
                                 scale   FLOPs  share  state     decay
h/0/qkv/kernel          4x12    muon     3 of 4x4            fused attention  0 -> 1, split 3\
                                measured  4.61 k  40.0%  192 B  schedule
h/*/up/kernel        2  4x16    muon     2 of 4x16           matrix           0 -> 1\
                                         measured  5.12 k  44.4%  512 B  schedule
kv                      4x6     muon     1 of 4x2, 1 of 4x4  kv               0 -> 1, split\
 Split((1, 2), interleaved=True)  measured  1.79 k  15.6%   96 B  schedule
temperature             scalar  adamw                        vector\
                                                                                     8 B       0.0
201 parameters: 99.5% to muon, 0.5% to adamw
7 matrices of 3 shapes: 11.5 kFLOP to orthogonalise
808 B of state; AdamW alone 1.57 KiB

fused attention: query, key and value are each a matrix
matrix: inputs and outputs have an axis each
kv: a rule of yours
vector: has at most one axis longer than one"""


def explain(params, **options):
    return muon_jax.explain(params, muon_jax.muon(1.0, **options))


def explained(**options):
    view = MatrixAxes(0, 1, Split((1, 2), interleaved=True))
    return explain(PARAMS, rules=[Rule("kv", view)], **options)


def test_a_table_to_the_letter():
    table = str(
        explained(scale="update_norm", weight_decay=lambda step: 0.1, fallback_learning_rate=1.0)
    )
    lines = table.splitlines()
    assert set(lines.pop(1)) == set(lines.pop(5)) == {"-"}
    assert "\n".join(lines) == TABLE


def test_one_matrix_of_few_flops():
    summary = str(explain(tree_of({"mix/kernel": (2, 3)}))).splitlines()
    assert "1 matrix of 1 shape: 240 FLOP to orthogonalise" in summary


def test_an_orthogonalizer_that_does_not_tell_its_flops_has_none():
    assert "7 matrices of 3 shapes" in str(explained(orthogonalizer=lambda x: x)).splitlines()


@pytest.mark.parametrize(
    ("split", "shown"),
    [
        (3, "split 3"),
        (Split((2, 4)), "split (2, 4)"),
        (Split(2, of="rows"), "split Split(2, of='rows')"),
        (Split(2, interleaved=True), "split Split(2, interleaved=True)"),
    ],
)
def test_a_view_shows_how_it_splits(split, shown):
    table = explain(tree_of({"kv": (4, 6)}), rules=[Rule("kv", MatrixAxes(0, 1, split))])
    assert f"0 -> 1, {shown}" in str(table)


def test_json_has_the_leaves_and_the_totals():
    told = explained().to_dict()
    assert [leaf["shape"] for leaf in told.pop("leaves")] == [[4, 12], [4, 16], [4, 16], [4, 6], []]
    flops = told.pop("flops")
    assert 11_000 < flops < 12_000
    assert told == {
        "parameters": {"muon": 200, "adamw": 1},
        "state_bytes": 200 * 4 + 2 * 4,
        "adamw_state_bytes": 201 * 2 * 4,
        "notices": [],
        "products": dict.fromkeys(("CPU", "TPU", "GPU"), "float32"),
    }


@pytest.mark.parametrize(
    ("value", "decimal"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (99_949, "99.9 k"),
        (100_000, "100 k"),
        (100_600, "101 k"),
        (10**6, "1 M"),
        (10**9, "1 G"),
        (10**12, "1 T"),
        (10**15, "1 P"),
        (10**18, "1 E"),
        (10**21, "1000 E"),
    ],
)
def test_counts_have_three_digits_and_a_unit(value, decimal):
    assert _decimal(value) == decimal


@pytest.mark.parametrize(
    ("value", "binary"),
    [
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (100 * 1024, "100 KiB"),
        (2**20, "1 MiB"),
        (2**30, "1 GiB"),
        (2**40, "1 TiB"),
        (2**50, "1 PiB"),
        (2**60, "1024 PiB"),
    ],
)
def test_bytes_have_units_of_1024(value, binary):
    assert _binary(value) == binary


@pytest.mark.parametrize(
    ("dtype", "cpu", "accelerator"),
    [
        (None, "float32", "bfloat16, float32"),
        ("bfloat16", "bfloat16, float32", "bfloat16, float32"),
        ("float32", "float32", "float32"),
    ],
)
def test_the_number_formats_of_every_platform_are_shown(dtype, cpu, accelerator):
    """Matrices with a short side under 64 stay in float32."""
    params = tree_of({"dense/kernel": (64, 80), "out/kernel": (63, 80)})
    rules = [Rule("*", MatrixAxes(0, 1))]
    found = explain(params, rules=rules, orthogonalizer=newton_schulz(dtype=dtype))
    assert found.to_dict()["products"] == {"CPU": cpu, "TPU": accelerator, "GPU": accelerator}
    line = f"operands of products: {cpu} on CPU, {accelerator} on TPU, {accelerator} on GPU"
    assert (line in str(found)) == (dtype != "float32")
    assert explain(params, rules=rules, orthogonalizer=polar_by_svd()).products == ()
