"""Run the tutorials: `python -m website.tutorials` puts new outputs into `docs/tutorials/`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

from website.repository import ROOT

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def run_tutorial(file: Path, folder: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder.

    Args:
        file: the notebook.
        folder: where its cells run, and leave their files.

    Returns:
        The notebook with its outputs. What libraries write to standard error is left out, and so are the times and
        versions of this machine.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook: nbformat.NotebookNode = nbformat.reads(file.read_text(encoding="utf-8"), as_version=4)
    for cell in notebook.cells:
        cell.metadata = {}
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main() -> None:
    """Run all tutorials and save their outputs."""
    for file in TUTORIALS:
        began = time.perf_counter()
        with TemporaryDirectory() as folder:
            notebook = run_tutorial(file, Path(folder))
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
