"""`benchmarks/steps.py`, which `make gpu` runs at the 8B model's shapes, on the tiny model and a CPU."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

MEASURED = r"measured +([\d.]+) s +(\d+) tokens/s  peak +-?([\d.]+) MB"
PREDICTED = r"predicted +([\d.]+) s +(\d+) tokens/s  peak +([\d.]+) MB"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_steps_are_measured_and_predicted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    steps = importlib.import_module("steps")
    monkeypatch.setattr(steps, "in_fresh_process", lambda function, *given: function(*given))  # no second import
    monkeypatch.setattr(steps, "be_quiet", lambda: None)  # other tests of this process read what Lightning says
    options = "--backbone tiny --device cpu --lengths 256:64 512:64 --repeats 1 --tflops 1e-3"
    steps.main(options.split())
    said = capsys.readouterr().out
    assert [line.partition(":")[0] for line in said.splitlines() if "LoRA of rank 32" in line] == [
        "supervised",
        "update",
    ]
    measured, predicted = (
        [tuple(map(float, found)) for found in re.findall(pattern, said)] for pattern in (MEASURED, PREDICTED)
    )
    assert len(measured) == len(predicted) == 4
    for tokens, (seconds, rate, _), (expected, wanted, held) in zip(
        (256 + 64, 512 + 64, 256 + 8 * 64, 512 + 8 * 64), measured, predicted, strict=True
    ):
        assert seconds * rate == pytest.approx(tokens, rel=0.05)
        assert expected * wanted == pytest.approx(tokens, rel=0.05)
        # The measured peak is that of this process, where other tests left memory and may give it back: of any sign.
        assert held > 0
