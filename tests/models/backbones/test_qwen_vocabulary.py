"""The published tokenizer: its ids, its control tokens, the latent tokens behind them, and files that are wrong."""

import sys
import unicodedata

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from futurel1.errors import CheckpointError
from futurel1.models import LATENT_TOKENS, LatentReasoner, LatentTokens
from futurel1.models.backbones.published import CONTROL_TOKENS, NUM_PIECES
from futurel1.models.backbones.qwen_vocabulary import PACKAGE, qwen_tokenizer
from futurel1.models.backbones.random_weights import RandomBackbone

ROWS = 151_936


@pytest.fixture(scope="module")
def tokenizer(published_processor):
    return published_processor.tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [9707, 11, 1879, 0]),
        ("<|im_start|>assistant\n", [151644, 77091, 198]),
        ("<|im_start|>user\n", [151644, 872, 198]),
        ("你好", [108386]),
        ("2026", [17, 15, 17, 21]),  # one token per digit
        ("a.\n\nb", [64, 382, 65]),  # a full stop with its blank line
        ("</reason>\n<answer>B</answer>", [522, 19895, 397, 27, 9217, 36721, 522, 9217, 29]),  # no token is a tag
        ("<think>\n</think>", [151667, 198, 151668]),
    ],
)
def test_ids_are_the_published_ones(tokenizer, text, ids):
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text


def test_control_tokens_are_in_the_published_order(tokenizer):
    assert (CONTROL_TOKENS["<|endoftext|>"], CONTROL_TOKENS["</think>"]) == (151_643, 151_668)
    assert [CONTROL_TOKENS[f"<|{name}_pad|>"] for name in ("vision", "image", "video")] == [151_654, 151_655, 151_656]
    for token, number in CONTROL_TOKENS.items():
        assert tokenizer.convert_tokens_to_ids(token) == number
        assert tokenizer(f"a{token}b")["input_ids"] == [64, number, 65]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    ids = tokenizer("a<|im_end|><|vision_pad|><tool_call><think><|fim_pad|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool_call><think><|fim_pad|>"


def test_latent_tokens_follow_and_the_table_does_not_grow(published_processor, published_words):
    tokenizer = published_processor.tokenizer
    assert len(tokenizer) == NUM_PIECES + len(CONTROL_TOKENS) + len(LATENT_TOKENS) == 151_672
    assert tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS)) == [151_669, 151_670, 151_671]
    assert published_words.tokens == LatentTokens(start_id=151_670, latent_id=151_669, end_id=151_671)
    assert published_words.backbone.vocab_size == ROWS


def test_a_saved_checkpoint_keeps_ids_and_table(published_words, tmp_path):
    folder = published_words.save_pretrained(tmp_path / "saved")
    again = LatentReasoner.from_pretrained(folder)
    assert again.tokens == published_words.tokens
    assert again.backbone.vocab_size == ROWS
    assert (again.config.image_token_id, again.config.video_token_id) == (151_655, 151_656)
    text = "门打开了。<|latent_start|><|latent|><|latent_end|>\n<answer>🫠 B</answer><|im_end|>"
    ids = published_words.tokenizer(text)["input_ids"]
    assert again.tokenizer(text)["input_ids"] == ids
    assert again.tokenizer.get_vocab() == published_words.tokenizer.get_vocab()
    kept = "门打开了。<|latent_start|><|latent|><|latent_end|>\n<answer>🫠 B</answer>"
    assert again.tokenizer.decode(ids, skip_special_tokens=True) == kept


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example("e\u0301 is composed")
@example(" two  blanks\n\ttab\r\n and 👨\u200d👩\u200d👧 龘")
def test_any_text_survives(published_processor, text):
    ids = published_processor.tokenizer(text)["input_ids"]
    assert published_processor.tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_a_published_shape_is_of_this_vocabulary(published_processor):
    config = RandomBackbone("qwen3-vl-8b").config()
    assert config.image_token_id == published_processor.image_token_id == 151_655
    assert config.video_token_id == published_processor.video_token_id == 151_656
    assert (config.vision_start_token_id, config.vision_end_token_id) == (151_652, 151_653)
    assert PACKAGE not in sys.modules  # only its file is read
    assert published_processor.image_processor.size["longest_edge"] == 16_777_216
    assert published_processor.video_processor.size["shortest_edge"] == 4_096


def test_rows_without_a_token_decode_to_nothing(published_words):
    """264 rows have no token; random weights choose them like others."""
    with torch.no_grad():
        logits = published_words.logits(torch.ones(1, published_words.hidden_size))
    assert logits.shape == (1, ROWS)
    assert published_words.tokenizer.decode([64, ROWS - 1, 65]) == "ab"
    assert published_words.tokenizer.batch_decode([[151_672], [64]]) == ["", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no byte-pair table .*install dashscope again"),
        (b"not a table", "is no byte-pair table"),
        (b"IQ== 0\nIg== 1\n", "has 2 pieces, Qwen3-VL has 151643; install another dashscope"),
    ],
)
def test_another_table_is_refused(tmp_path, content, message):
    table = tmp_path / f"{message[:9]}.tiktoken"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        qwen_tokenizer(table)
