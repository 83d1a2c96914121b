"""Decoding with the published tokenizer, whose tokens are often parts of a character or several words at once."""

import pytest
import torch
from scripted import response_texts, written

from futurel1.data import PromptBatch
from futurel1.models import SpanBudget
from futurel1.models.transcript import transcripts


@pytest.fixture
def write(monkeypatch, published_words):
    """Have the model write texts; returns what it wrote and why it stopped."""

    def texts_of(texts, **options):
        rollout = written(monkeypatch, published_words, texts, **options)
        return response_texts(rollout, published_words.tokenizer), rollout.finish_reasons

    return texts_of


@pytest.mark.parametrize(
    ("stop", "tokens"),
    [("🫠", 3), ("👨\u200d👩\u200d👧", 7), ("龘", 2), ("</answer>", 3), ("。", 1), ("开", 1), ("</answer>\n", 3)],
)
def test_a_stop_string_may_take_many_tokens_or_part_of_one(write, published_words, stop, tokens):
    assert len(published_words.tokenizer(stop)["input_ids"]) == tokens
    texts, reasons = write([f"门{stop}打 🫡 more", "靐🫡 </answe", f"{stop}x"], stop_strings=stop)
    # "🫡" shares its first tokens with "🫠"; "</answer>\n" is one token longer than "</answer>"
    assert (texts[1], reasons[1]) == ("靐🫡 </answe<|im_end|>", "eos")
    for text, reason, before in ((texts[0], reasons[0], "门"), (texts[2], reasons[2], "")):
        assert reason == "stop"
        assert text.startswith(before + stop)
        assert len(text) <= len(before + stop) + 1  # the last token may extend beyond it


def test_streamed_tokens_are_the_text_once_they_are_joined(monkeypatch, published_words):
    text = "门打开了。🫠 </answer> 👨\u200d👩\u200d👧"
    steps = []
    rollout = written(monkeypatch, published_words, [text], on_step=steps.append)
    streamed = [int(token) for step in steps for token in step.tokens]
    assert streamed == rollout.responses[0].tolist()
    pieces = [published_words.tokenizer.decode([token]) for token in streamed]
    assert "".join(pieces) != f"{text}<|im_end|>"  # parts of characters are no text
    assert published_words.tokenizer.decode(streamed) == f"{text}<|im_end|>"


def test_a_response_that_is_cut_inside_a_character_is_a_text(monkeypatch, published_words):
    rollout = written(monkeypatch, published_words, ["🫠"], max_new_tokens=2)
    assert rollout.finish_reasons == ["length"]
    (transcript,) = transcripts(rollout, published_words.tokenizer)
    assert transcript.text == transcript.readable == "\ufffd"
    assert transcript.text.encode().decode() == transcript.text


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_both_published_end_tokens_end_a_response(write, end):
    texts, reasons = write([f"门{end}more", "门<|vision_end|>"])
    assert texts == [f"门{end}", "门<|vision_end|><|im_end|>"]
    assert reasons == ["eos", "eos"]


def test_all_rows_can_be_sampled_and_read(published_words):
    text = "<|im_start|>user\n门?<|im_end|>\n<|im_start|>assistant\n"
    ids = published_words.tokenizer(text, return_tensors="pt")["input_ids"]
    prompt = PromptBatch(ids, torch.ones_like(ids))
    rollout = published_words.generate(
        prompt, num_branches=8, max_new_tokens=24, do_sample=True, temperature=5.0, force_start=True,
        budget=SpanBudget.fixed(2), seed=1,
    )  # fmt: skip
    assert rollout.span_table[:, 2].tolist() == [2] * 8
    texts = transcripts(rollout, published_words.tokenizer)
    assert all(text.readable.startswith("[imagined frame 1: 2 latents]") for text in texts)
    assert all(text.text.startswith("<|latent_start|><|latent|><|latent|><|latent_end|>") for text in texts)
    assert torch.isfinite(rollout.log_probs).all()
