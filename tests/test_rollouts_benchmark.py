"""`benchmarks/rollouts.py` in its shortest form; TRL takes part where it is installed."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

LINE = r"{} +([\d.]+) s +spread [\d.]+ +(\d+) tokens/s +sampling (\d+)% +peak -?\d+ MB"


def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module under a name of its own: tests of rewards have another `rollouts`."""
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    spec = spec_from_file_location("rollouts_benchmark", folder / "rollouts.py")
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rollouts_benchmark", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_rollout_batch_and_its_update_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = benchmark(monkeypatch)
    monkeypatch.setattr(rollouts, "in_fresh_process", lambda function, *given: function(*given))  # no second import
    monkeypatch.setattr(rollouts, "be_quiet", lambda: None)  # other tests of this process read what Lightning says
    rollouts.main(["--lengths", "24:6", "--prompts", "2", "--branches", "3", "--slots", "2", "--repeats", "1"])
    said = capsys.readouterr().out
    found = re.search(LINE.format("this"), said)
    assert found is not None
    seconds, rate, share = map(float, found.groups())
    assert seconds * rate == pytest.approx(2 * 3 * 6, rel=0.1, abs=0.01 * rate + seconds)
    assert 0 < share < 100
    assert ("this is " in said) == (find_spec("trl") is not None) == ("TRL is not installed" not in said)


def test_responses_end_with_the_chosen_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = benchmark(monkeypatch).Ends
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    never = (ends([2, 4], [7], 0.0)(logits) / 0.9).softmax(dim=-1)
    assert not never[:, [2, 4, 7]].any()
    some = (ends([2, 4], [7], 0.125)(logits) / 0.9).softmax(dim=-1)
    assert some[:, 2].tolist() == pytest.approx([0.125] * 3)
    assert not some[:, [4, 7]].any()
