"""Layouts of prompts and branches against token-by-token definitions."""

import pytest
import torch
from decoded import ROWS, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from futurel1.errors import ConfigError
from futurel1.models.decoding.branching import choose_layout, pack


@st.composite
def groups(draw):
    """Prompt lengths and response lengths of a few groups."""
    prompts = draw(st.integers(1, 3))
    branches = draw(st.integers(1, 3))
    start = draw(st.lists(st.integers(1, 4), min_size=prompts, max_size=prompts))
    lengths = draw(
        st.lists(st.lists(st.integers(1, 4), min_size=branches, max_size=branches), min_size=prompts, max_size=prompts)
    )
    return start, lengths


def tokens_of_rows(start, lengths, layout):
    """Per row, its columns as ("pad",), ("prompt", i) and (branch, step), written down one by one."""
    width = max(start)
    rows = []
    for real, group in zip(start, lengths, strict=True):
        prompt = [("pad",)] * (width - real) + [("prompt", i) for i in range(real)]
        fed = [[(branch, step) for step in range(length - 1)] for branch, length in enumerate(group)]
        if layout == "shared":
            rows.append((prompt + [token for part in fed for token in part], list(range(len(group)))))
        else:
            rows += [(prompt + part, [branch]) for branch, part in enumerate(fed)]
    longest = max(len(row) for row, _ in rows)
    return [(row + [("pad",)] * (longest - len(row)), branches) for row, branches in rows]


@pytest.mark.parametrize("layout", ["shared", "rows"])
@given(groups())
@settings(max_examples=40)
def test_pack_against_tokens_written_down_one_by_one(layout, group):
    start, lengths = group
    width, branches = max(start), len(lengths[0])
    mask = torch.tensor([[0] * (width - real) + [1] * real for real in start])
    columns = max(max(row) for row in lengths) + 1
    packed = pack(mask, torch.tensor(lengths), columns, layout)
    rows = tokens_of_rows(start, lengths, layout)

    assert packed.attend.shape == (len(rows), 1, len(rows[0][0]), len(rows[0][0]))
    assert packed.prompt.tolist() == [row if layout == "shared" else row // branches for row in range(len(rows))]
    for row, (tokens, _) in enumerate(rows):
        for i, query in enumerate(tokens):
            for j, key in enumerate(tokens):
                if query == ("pad",):
                    # what padding sees is never read; it has to see something
                    assert packed.attend[row, 0, i].any()
                    continue
                in_prompt = key[0] == "prompt" and j <= i
                own = isinstance(query[0], int) and key[0] == query[0] and j <= i
                assert bool(packed.attend[row, 0, i, j]) == (in_prompt or own), (query, key)
        assert packed.step[row].tolist() == [token[1] if isinstance(token[0], int) else -1 for token in tokens]

    for number in range(len(lengths) * branches):
        prompt, branch = divmod(number, branches)
        row = prompt if layout == "shared" else number
        assert packed.row[number] == row
        tokens = rows[row][0]
        for step in range(columns):
            fed = (branch, step) in tokens and step < lengths[prompt][branch] - 1
            assert int(packed.fed_column[number, step]) == (tokens.index((branch, step)) if fed else -1)
            if step >= lengths[prompt][branch]:
                assert int(packed.column[number, step]) == 0
            else:
                # the token before it predicts it: the prompt's last, or the branch's own
                before = width - 1 if step == 0 else tokens.index((branch, step - 1))
                assert int(packed.column[number, step]) == before


# ---------------------------------------------------------------------- the layout that a backbone can have


def test_recurrent_backbones_cannot_share_a_prompt(lively):
    family = lively["qwen3_5"]
    with pytest.raises(ConfigError, match="recurrent"):
        sample(family.reasoner, family.batch([ROWS[2]], padding="left"), share_prompt=True)


def test_attention_without_masks_cannot_share_a_prompt(monkeypatch, lively, caplog):
    backbone = lively["qwen3_vl"].reasoner.backbone
    monkeypatch.setattr(backbone.language_model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ConfigError, match=r"flash_attention_2.*leave share_prompt out"):
        choose_layout(backbone, True)
    with caplog.at_level("INFO", logger="futurel1"):
        assert [choose_layout(backbone, share) for share in (None, False, None)] == ["rows"] * 3
    assert sum("own copy of the prompt" in record.message for record in caplog.records) <= 1
