"""Rewards of responses as the published tokenizer decodes them: no tag is a token, and characters take several."""

import pytest

from futurel1.rewards import AccuracyReward, FormatReward
from futurel1.rewards.repetition import repetition_score
from rollouts import make_inputs

SPAN = "<|latent_start|><|latent|><|latent|><|latent_end|>"
RESPONSES = {
    "门🫠 B": (f"{SPAN}\n<reason>门打开了，狗🫠跑了出来。</reason>\n<answer>B</answer><|im_end|>", 1.0, 1.0),
    "wide B": (f"<reason>👨\u200d👩\u200d👧</reason>{SPAN}<reason>龘</reason><answer>（Ｂ）</answer>", 1.0, 0.0),
    "cut": (f"{SPAN}<reason>龘</reason><answer>B</answ", 0.0, 0.0),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_format_and_accuracy_of_decoded_responses(published_processor, name):
    tokenizer = published_processor.tokenizer
    text, accuracy, fits = RESPONSES[name]
    decoded = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False)
    assert decoded == text
    inputs = make_inputs([decoded], answers=["B"])
    assert FormatReward()(inputs).tolist() == [fits]
    assert AccuracyReward()(inputs).tolist() == [accuracy]


def test_repetition_of_text_without_blanks_shows_in_its_lines(published_processor):
    sentence = "门打开了，然后狗跑了出来。"
    tokenizer = published_processor.tokenizer

    def score(text):
        return repetition_score(tokenizer.decode(tokenizer(text)["input_ids"]))

    assert score("\n".join([sentence] * 8)) == 1 - 1 / 8
    assert score(sentence * 40) == 0.0  # one word, by the released rule
    assert score("🫠 " * 40) > 0.9
