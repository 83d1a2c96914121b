"""Result files that cannot be trusted are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fabricated import MINIATURE, ROOT, fabricate

from experiments.proof.results import Bench, Places, read_results
from experiments.proof.stages import build_stages, load_plan


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench with one result."""
    monkeypatch.chdir(ROOT)
    made = Bench(build_stages(load_plan(MINIATURE)), Places.under(tmp_path))
    fabricate(made, ["test-backbone"])
    return made


def test_results_are_read_by_name(bench: Bench) -> None:
    assert list(read_results(bench.places)) == ["test-backbone"]
    assert read_results(bench.places)["test-backbone"]["digest"] == bench.digests["test-backbone"]


def test_a_cut_result_is_refused(bench: Bench) -> None:
    file = bench.places.result("test-backbone")
    file.write_text(file.read_text()[:100])
    with pytest.raises(SystemExit, match=r"test-backbone\.json is damaged .*remove it"):
        read_results(bench.places)


@pytest.mark.parametrize("content", [{"stage": "test-sft-text-s0", "digest": "1"}, {"stage": "test-backbone"}, [1]])
def test_a_foreign_result_is_refused(bench: Bench, content: object) -> None:
    bench.places.result("test-backbone").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="no result of a stage 'test-backbone'"):
        read_results(bench.places)
