"""Notebooks as pages: what was run, and the outputs that are committed with it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def notebook_page(file: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook in Markdown.

    Args:
        file: a notebook, of format 4.

    Returns:
        The page, and its pictures by file name; the page shows them from its own folder.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"````python\n{source}\n````")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{file.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![]({name})")
            else:
                text = _COLOUR.sub("", "".join(output.get("text", data.get("text/plain", "")))).rstrip()
                parts.append(f"````{{.text .output}}\n{text}\n````")
    return "\n\n".join(parts) + "\n", pictures
