"""Programs for TPUs, compiled on a machine that has none."""

import importlib.util

import pytest


@pytest.fixture(autouse=True)
def libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which `make test-tpu` installs where it has a wheel")
