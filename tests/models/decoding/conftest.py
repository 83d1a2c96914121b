"""Models whose responses have spans and different lengths."""

import pytest
from decoded import livelier
from families import make_family


@pytest.fixture(scope="module")
def lively():
    return {name: livelier(make_family(name)) for name in ("qwen3_vl", "qwen2_5_vl", "qwen3_5")}
