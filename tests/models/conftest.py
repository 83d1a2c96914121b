"""Fixtures around the tiny models of :mod:`families`."""

from pathlib import Path
from typing import Any

import pytest
from families import CONFIGS, Family, make_family, write_stock

from futurel1.models import LatentReasoner
from futurel1.models.backbones.tiny import tiny_model


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    """All families by `model_type`; shared, so never change their weights."""
    return {model_type: make_family(model_type) for model_type in CONFIGS}


@pytest.fixture(scope="session", params=CONFIGS)
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    """Each family in turn."""
    return families[request.param]


@pytest.fixture(scope="session")
def tiny() -> LatentReasoner:
    """The tiny reasoner; shared, so never change its weights."""
    return LatentReasoner.from_pretrained("tiny@random")


@pytest.fixture(scope="session")
def stock_tiny() -> Any:
    """The tiny stock model; shared, so never change its weights."""
    return tiny_model()


@pytest.fixture
def stock_folder(tmp_path: Path, stock_tiny: Any) -> Path:
    """A stock checkpoint as on the hub: weights, tokenizer and processor, no latent tokens anywhere."""
    return write_stock(tmp_path / "stock", stock_tiny)
