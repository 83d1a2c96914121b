"""Run the tutorials: `python -m website.tutorials` puts new outputs into `docs/tutorials/`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from website.repository import ROOT

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


_FRESH = """
import os
os.chdir({folder!r})
get_ipython().run_line_magic("reset", "-f")
"""
"""First cell, which leaves no trace of other notebooks."""


def run_tutorial(file: Path, folder: Path, kernel: KernelManager) -> nbformat.NotebookNode:
    """Run a notebook in a folder.

    Args:
        file: the notebook.
        folder: where its cells run, and leave their files.
        kernel: a kernel, which may have run other notebooks; it imports libraries only once.

    Returns:
        The notebook with its outputs. What libraries write to standard error is left out, and so are the times and
        versions of this machine.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook: nbformat.NotebookNode = nbformat.reads(file.read_text(encoding="utf-8"), as_version=4)
    for cell in notebook.cells:
        cell.metadata = {}
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_FRESH.format(folder=str(folder))))
    NotebookClient(notebook, timeout=120, km=kernel, resources={"metadata": {"path": str(folder)}}).execute()
    before = notebook.cells.pop(0).execution_count
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for numbered in (cell, *(output for output in cell.outputs if "execution_count" in output)):
                numbered.execution_count -= before
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main() -> None:
    """Run all tutorials and save their outputs."""
    kernel = KernelManager(kernel_name="python3")
    for file in TUTORIALS:
        began = time.perf_counter()
        with TemporaryDirectory() as folder:
            notebook = run_tutorial(file, Path(folder), kernel)
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    kernel.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
