"""Layouts of prompts and branches against token-by-token definitions."""

import pytest
import torch
from decoded import ROWS, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from futurel1.errors import ConfigError
from futurel1.models.decoding.branching import branch_mask, choose_layout, kept_columns, pack


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


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25)
def test_branch_mask_opens_the_prompt_and_the_own_branch(real, branches, steps):
    width = max(real)
    prompt = torch.tensor([[0] * (width - count) + [1] * count for count in real])
    mask = branch_mask(prompt, branches, steps, torch.float32)
    assert mask.shape == (len(real), 1, branches, width + branches * steps)
    for row in range(len(real)):
        for branch in range(branches):
            for column in range(mask.shape[-1]):
                inside = bool(prompt[row, column]) if column < width else (column - width) % branches == branch
                assert float(mask[row, 0, branch, column]) == (0 if inside else torch.finfo(torch.float32).min)


def test_kept_columns_are_the_prompt_and_the_kept_slots_of_every_step():
    kept = torch.tensor([[0, 2], [1, 3]])
    columns = kept_columns(prompt_width=3, old_branches=4, steps=2, kept=kept)
    assert columns.tolist() == [[0, 1, 2, 3, 5, 7, 9], [0, 1, 2, 4, 6, 8, 10]]
    assert kept_columns(3, 4, 0, kept).tolist() == [[0, 1, 2]] * 2


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
