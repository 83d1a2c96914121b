from __future__ import annotations

import base64
import json

from website.notebooks import notebook_page


def test_cells_and_outputs_become_markdown(tmp_path):
    picture = b"\x89PNG"
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "Text."]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["\x1b[1m1\x1b[0m\n"]},
                {"output_type": "display_data", "data": {"image/png": base64.b64encode(picture).decode()}},
                {"output_type": "execute_result", "data": {"text/plain": ["[1,\n", " 2]"]}},
            ],
        },
    ]
    file = tmp_path / "look.ipynb"
    file.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    text, pictures = notebook_page(file)
    assert text == (
        "# A title\nText.\n\n````python\nprint(1)\n````\n\n````{.text .output}\n1\n````\n\n![](look-1.png)\n\n"
        "````{.text .output}\n[1,\n 2]\n````\n"
    )
    assert pictures == {"look-1.png": picture}
