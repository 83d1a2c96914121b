"""The two formats of the paper, and what the released code accepts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from futurel1 import LatentReasoner
from futurel1.errors import BatchError, ConfigError
from futurel1.rewards import FormatReward
from rollouts import make_inputs

L, R, A = "<|latent_start|><|latent|><|latent|><|latent_end|>", "<reason>then</reason>", "<answer>B</answer>"


@pytest.mark.parametrize(
    ("text", "both", "reason_first", "released"),
    [
        (L + R + A, 1, 0, 1),
        (R + L + R + A, 1, 1, 1),
        (f" {R}\n{L}\n{R}\n{L}\n{R}\n{A}<|im_end|>\n", 1, 1, 1),
        ("<|latent_start|><|latent_end|>" + R + A, 1, 0, 1),
        (L + "< reason >then< / reason >" + A, 1, 0, 1),
        (R + A, 0, 0, 0),
        (L + A, 0, 0, 0),
        (R + R + L + R + A, 0, 0, 0),
        (L + L + R + A, 0, 0, 0),
        (L + R + R + A, 0, 0, 0),
        (L + "<|latent_end|>" + R + A, 0, 0, 0),
        ("<|latent_start|><|latent|>" + R + A, 0, 0, 0),
        (L + R, 0, 0, 0),
        (L + R + "so " + A, 0, 0, 0),
        (L + R + A + "!", 0, 0, 0),
        ("", 0, 0, 0),
        # What only the released code accepts.
        (L + R + A + A, 0, 0, 1),
        (L + R + A + "or" + R + A, 0, 0, 1),
        (L + "<reason>a</reason> loose text </reason>" + A, 0, 0, 1),
        (L + "<reason>a" + L + "</reason>" + A, 0, 0, 1),
    ],
)
def test_format(text: str, both: float, reason_first: float, released: float) -> None:
    inputs = make_inputs([text])
    assert FormatReward()(inputs).tolist() == [both]
    assert FormatReward("reason_first")(inputs).tolist() == [reason_first]
    assert FormatReward(variant="released")(inputs).tolist() == [released]


def test_format_asks_for_spans() -> None:
    inputs = make_inputs([L + R + A, L + R + L + R + A, R + L + R + L + R + A])
    assert FormatReward(min_spans=2)(inputs).tolist() == [0, 1, 1]
    assert FormatReward(min_spans=3)(inputs).tolist() == [0, 0, 0]
    with pytest.raises(ConfigError, match="min_spans"):
        FormatReward(min_spans=-1)


def spans(*numbers: int) -> dict[str, Tensor]:
    """Latents of one rollout, whose spans have so many each."""
    ids = torch.tensor([[span for span, number in enumerate(numbers) for _ in range(number)]], dtype=torch.int64)
    return {
        "latents": torch.zeros(*ids.shape, 4),
        "latent_mask": torch.ones_like(ids, dtype=torch.bool),
        "span_ids": ids,
    }


EMPTY = "<|latent_start|><|latent_end|>"


@pytest.mark.parametrize(
    "spelled", [L, EMPTY, "<|latent_start|>any <b>thing</b><|latent_end|>", "< |latent_start| > <|latent_end|>"]
)
def test_a_spelled_out_span_is_none(spelled: str) -> None:
    # No span at all, one before or behind the spelled one, and one that the spelled one holds.
    for text, table in (
        (spelled + R + A, spans()),
        (L + R + spelled + R + A, spans(2)),
        (spelled + R + L + R + A, spans(2)),
        ("<|latent_start|>" + spelled.removesuffix("<|latent_end|>") + L + R + A, spans(2)),
    ):
        inputs = make_inputs([text], **table)
        assert FormatReward()(inputs).item() == 0, text
        assert FormatReward(min_spans=1)(inputs).item() == 0, text
        # The released code asks the text alone, but knows no min_spans.
        assert FormatReward(variant="released")(make_inputs([spelled + R + A], **spans())).item() == 1
        assert FormatReward(min_spans=1, variant="released")(make_inputs([spelled + R + A], **spans())).item() == 0


def test_spans_of_the_table_count() -> None:
    for text, table in (
        (L + R + A, spans(2)),
        (R + L + R + L + R + A, spans(2, 2)),
        (EMPTY + R + L + R + A, spans(0, 2)),
        (EMPTY + R + A, {**spans(), "span_counts": torch.tensor([1])}),
        (L + R + EMPTY + R + A, {**spans(2), "span_counts": torch.tensor([2])}),
        (L + R + EMPTY + R + A, {"span_counts": torch.tensor([2])}),
    ):
        number = text.count("<|latent_start|>")
        assert FormatReward(min_spans=number)(make_inputs([text], **table)).item() == 1, text
        assert FormatReward(min_spans=number + 1)(make_inputs([text], **table)).item() == 0, text
    batch = {"latents": torch.zeros(2, 2, 4), "latent_mask": torch.tensor([[True, True], [False, False]])}
    ids = torch.tensor([[0, 0], [-1, -1]])
    assert FormatReward()(make_inputs([L + R + A] * 2, **batch, span_ids=ids)).tolist() == [1, 0]
    with pytest.raises(BatchError, match="span_ids"):
        FormatReward()(make_inputs([L + R + A] * 2, **batch))
    with pytest.raises(BatchError, match=r"span_counts must be \(1,\) int"):
        make_inputs([L + R + A], span_counts=torch.tensor([1, 1]))


def test_text_that_reads_as_markers_is_none() -> None:
    tokenizer = LatentReasoner.from_pretrained("tiny@random").processor.tokenizer
    pieces = ["<", "|", "latent", "_start", "|", ">", "<", "|", "latent", "_end", "|", ">", R, A]
    ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False).input_ids]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == EMPTY + R + A
    assert tokenizer.convert_tokens_to_ids("<|latent_start|>") not in ids
    assert FormatReward()(make_inputs([text], **spans())).item() == 0


@given(st.lists(st.sampled_from("LRA"), max_size=9).map("".join))
def test_format_accepts_two_languages_only(letters: str) -> None:
    text = " ".join({"L": L, "R": R, "A": A}[letter] for letter in letters)
    body = letters.removeprefix("R").removesuffix("A")
    fits = letters.endswith("A") and len(body) > 0 and body == "LR" * (len(body) // 2)
    assert FormatReward()(make_inputs([text])).item() == fits
    assert FormatReward("reason_first")(make_inputs([text])).item() == (fits and letters[0] == "R")


def test_choices_are_checked() -> None:
    with pytest.raises(ConfigError, match="order must be 'both' or 'reason_first', got 'rfirst'"):
        FormatReward("rfirst")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="variant must be 'paper' or 'released', got 'own'"):
        FormatReward(variant="own")  # type: ignore[arg-type]
