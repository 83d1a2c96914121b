"""The tutorials run, and are committed with the outputs of a run."""

from __future__ import annotations

import json

import pytest
from jupyter_client.manager import KernelManager
from pages import ROOT

from website.tutorials import TUTORIALS, run_tutorial

NAMES = [file.stem for file in TUTORIALS]


def code_cells(file):
    return [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_tutorials_run(tmp_path):
    kernel = KernelManager(kernel_name="python3")
    for file in TUTORIALS:
        folder = tmp_path / file.stem
        folder.mkdir()
        ran = [cell for cell in run_tutorial(file, folder, kernel).cells if cell.cell_type == "code"]
        committed = code_cells(file)
        assert [cell.source for cell in ran] == ["".join(cell["source"]) for cell in committed]
        assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
        for now, then in zip(ran, committed, strict=True):
            types = [output.output_type for output in now.outputs]
            assert types == [output["output_type"] for output in then["outputs"]], file
    kernel.shutdown_kernel(now=True)


@pytest.mark.parametrize("file", TUTORIALS, ids=NAMES)
def test_outputs_are_committed(file):
    cells = code_cells(file)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) >= 4
    assert all(output["output_type"] != "error" for output in outputs)


def test_tutorials_are_small():
    assert NAMES == ["ask_and_look", "own_videos", "rewards"]
    assert all(file.stat().st_size < 400_000 for file in TUTORIALS)


def test_tutorials_are_on_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [name for name in NAMES if f"- tutorials/{name}.md" not in navigation] == []
