"""Settings of the engine Ray; what it does on a cluster is tested in `test_ray_cluster.py`."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from futurel1.engines import Ray
from futurel1.errors import ConfigError


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs the package ray.*: pip install 'futurel1\[ray\]' on all nodes"):
        Ray()


def test_settings_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.data", ModuleType("ray.data"))
    for wrong in ({"actors": 0}, {"actors": 3, "max_actors": 2}, {"gpus": -1.0}, {"cpus": 0.0}):
        with pytest.raises(ConfigError, match="got"):
            Ray(**wrong)  # type: ignore[arg-type]
    assert (Ray(actors=3).max_actors, Ray().identity()) == (3, {})
