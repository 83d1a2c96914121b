"""The text of conversations: its layout, its system turn, and what would be read as structure."""

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_samples import (
    ASSISTANT,
    FOUR_PADS,
    SYSTEM,
    TWO_LATENTS,
    asked,
    decoded,
    framed,
    parsed,
    pathed,
    supervised,
    unlabelled,
)

from futurel1 import LatentReasoner
from futurel1.data import Turn
from futurel1.data.chat import ChatEncoder
from futurel1.data.chat_text import CONTROL_STRINGS, default_system_prompt
from futurel1.data.samples import Sample
from futurel1.errors import ConfigError, MissingFileError, RecordError
from futurel1.models import load_processor


def test_frame_indexed_layout_is_exact(encoder, clips):
    encoded = encoder.encode(framed(clips["closed"]))
    assert decoded(encoder, encoded.input_ids) == (
        SYSTEM
        + f"<|im_start|>user\nframe_1{FOUR_PADS}frame_2{FOUR_PADS}What happens next?<|im_end|>\n"
        + f"<|im_start|>assistant\n<reason>The ball moves.</reason>\n{TWO_LATENTS}<reason>It turns.</reason>\n"
        + f"{TWO_LATENTS}<reason>Then stops.</reason>\n<answer>It stops.</answer><|im_end|>\n"
    )
    assert encoded.image_grid_thw.tolist() == [[1, 4, 4], [1, 4, 4]]
    assert encoded.hint_grid_thw.tolist() == [[1, 2, 4], [1, 2, 4]]
    assert encoded.pixel_values.shape[0] == 32
    assert encoded.hint_pixel_values.shape[0] == 16
    assert encoded.pixel_values_videos is encoded.video_grid_thw is encoded.video_seconds_per_grid is None


def test_upstream_layout_is_exact(encoder, clips):
    sample = parsed(
        {
            "video": str(clips["closed"]),
            "question": "What happens next?",
            "answer": "The gate opens. <rimage> He walks. <ans>He leaves.</ans>",
            "question_images_index": [2],
            "reasoning_images_index": [7],
        }
    )
    assert decoded(encoder, encoder.encode(sample).input_ids) == (
        SYSTEM + f"<|im_start|>user\n{FOUR_PADS}What happens next?<|im_end|>\n"
        f"<|im_start|>assistant\n<reason>The gate opens.</reason>\n{TWO_LATENTS}<reason>He walks.</reason>\n"
        "<answer>He leaves.</answer><|im_end|>\n"
    )


def test_path_based_layout_is_exact(encoder, pictures):
    assert decoded(encoder, encoder.encode(pathed(pictures)).input_ids) == (
        SYSTEM + f"<|im_start|>user\n{FOUR_PADS}What happens next?<|im_end|>\n"
        f"<|im_start|>assistant\n<reason>The ball moves.</reason>\n{TWO_LATENTS}<answer>B</answer><|im_end|>\n"
    )


def test_chat_layout_has_no_tags_and_labels_every_assistant_turn(encoder, pictures):
    sample = parsed(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image> What is it?"},
                {"role": "assistant", "content": " A ball. "},
                {"role": "user", "content": "And then? <image>"},
                {"role": "assistant", "content": "It falls."},
            ],
            "images": ["now.png", "late.png"],
        },
        pictures,
    )
    encoded = encoder.encode(sample)
    assert decoded(encoder, encoded.input_ids) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{FOUR_PADS}What is it?<|im_end|>\n"
        f"<|im_start|>assistant\nA ball.<|im_end|>\n<|im_start|>user\nAnd then?{FOUR_PADS}<|im_end|>\n"
        "<|im_start|>assistant\nIt falls.<|im_end|>\n"
    )
    assert supervised(encoder, encoded) == "A ball.<|im_end|>\nIt falls.<|im_end|>\n"
    assert encoded.hint_pixel_values is encoded.hint_grid_thw is None


def test_unlabelled_layout_is_spans_alone(encoder, clips):
    encoded = encoder.encode(unlabelled(clips["closed"]))
    assert decoded(encoder, encoded.input_ids) == (
        SYSTEM + f"<|im_start|>user\nframe_1{FOUR_PADS}frame_3{FOUR_PADS}Imagine what comes next.<|im_end|>\n"
        f"<|im_start|>assistant\n{TWO_LATENTS * 3}<|im_end|>\n"
    )
    assert supervised(encoder, encoded) == "<|latent_start|><|latent_end|>\n" * 3 + "<|im_end|>\n"
    assert encoded.input_ids[encoded.prompt_length] == encoder.tokens.start_id
    assert encoded.image_grid_thw.tolist() == [[1, 4, 4]] * 2
    assert encoded.hint_grid_thw.tolist() == [[1, 2, 4]] * 3
    prompt = encoder.encode_prompt(unlabelled(clips["closed"]))
    assert torch.equal(prompt.input_ids, encoded.input_ids[: encoded.prompt_length])


@pytest.mark.parametrize("control", CONTROL_STRINGS)
def test_control_strings_in_texts_are_refused(encoder, pictures, control):
    def turns(question: str, thought: str) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": thought}]}

    for field, changes in {
        "user turn": turns(f"<image>Is {control}?", "It is.<image>"),
        "assistant turn": turns("<image>Is it?", f"{control}<image>"),
        "answer": {"answer": f"B{control}"},
    }.items():
        with pytest.raises(RecordError) as raised:
            encoder.encode(pathed(pictures, **changes))
        assert f"data.json:1: the {field} contains {control}" in str(raised.value)


def test_system_turns_may_name_latent_brackets_and_nothing_else(encoder):
    def sample(system: str) -> Sample:
        turns = [("system", system), ("user", "What?"), ("assistant", "That.")]
        return parsed({"messages": [{"role": role, "content": text} for role, text in turns]})

    encoded = encoder.encode(sample("Think in <|latent_start|>pictures<|latent_end|>."))
    assert "<|latent_start|>pictures<|latent_end|>" in decoded(encoder, encoded.input_ids)
    assert supervised(encoder, encoded) == "That.<|im_end|>\n"
    for control in ("<|latent|>", "<|image_pad|>", "<|im_start|>", "<|im_end|>"):
        with pytest.raises(RecordError, match="the system turn contains"):
            encoder.encode(sample(f"Think {control}."))


@pytest.mark.parametrize(
    "prompt", ["Imagine, then answer.", "\n Imagine.\r\n\n", "answer\n", "", " ", "\ufeffA\u2028é"]
)
def test_system_prompt_file_is_used_to_the_byte(processor, pictures, tmp_path, prompt):
    file = tmp_path / "system.txt"
    file.write_bytes(prompt.encode())
    encoder = ChatEncoder(processor, system_prompt=str(file))
    assert encoder.system_prompt == prompt
    turn = f"<|im_start|>system\n{prompt}<|im_end|>\n" if prompt else ""
    assert encoder.layout.text(pathed(pictures), [2]).startswith(f"{turn}<|im_start|>user\n")


def test_system_prompts_of_checkpoints_survive_to_the_byte(tmp_path):
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    for number, prompt in enumerate(("Imagine.\n", "\r\n Imagine. ", "\n\n")):
        reasoner.processor.system_prompt = prompt
        assert load_processor(reasoner.save_pretrained(tmp_path / str(number))).system_prompt == prompt


@pytest.mark.parametrize("text", ["Be brief.", " Be brief.\n", "\tA\r\n"])
def test_a_system_turn_is_used_as_it_is_given(encoder, text):
    turns = [{"role": "user", "content": " What? "}, {"role": "assistant", "content": " That. "}]
    expected = f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
    for record in ({"system": text}, {"messages": [{"role": "system", "content": text}, *turns]}):
        sample = parsed({"messages": turns} | record)
        assert encoder.layout.text(sample, ()) == f"{expected}<|im_start|>assistant\nThat.<|im_end|>\n"
        assert decoded(encoder, encoder.encode_prompt(sample).input_ids).endswith("<|im_start|>assistant\n")


def conversation(*turns: tuple[str, str, bool | None]) -> Sample:
    return parsed({"messages": [{"role": role, "content": text, "loss": loss} for role, text, loss in turns]})


def test_a_prompt_ends_at_the_first_response_that_is_learned(encoder):
    sample = conversation(("user", "What?", None), ("assistant", "Draft.", False), ("user", "Better?", None),
                          ("assistant", "It.", None))  # fmt: skip
    encoded = encoder.encode_prompt(sample)
    text = decoded(encoder, encoded.input_ids)
    assert text.endswith("assistant\nDraft.<|im_end|>\n<|im_start|>user\nBetter?<|im_end|>\n<|im_start|>assistant\n")
    assert torch.equal(encoder.encode(sample).input_ids[: len(encoded)], encoded.input_ids)


def test_system_prompt_file_is_checked(processor, tmp_path):
    with pytest.raises(MissingFileError, match=r"no system prompt file .*nowhere\.txt"):
        ChatEncoder(processor, system_prompt=tmp_path / "nowhere.txt")
    file = tmp_path / "system.txt"
    file.write_text("one<|im_end|>", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"system\.txt contains <\|im_end\|>"):
        ChatEncoder(processor, system_prompt=file)
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"system\.txt: byte 3 is not UTF-8"):
        ChatEncoder(processor, system_prompt=file)


@pytest.mark.parametrize("answer", ["B</answer><answer>C", "<reason>because</reason> B", "B <|vision_pad|>"])
def test_an_answer_with_tags_of_its_own_is_refused(encoder: ChatEncoder, tmp_path: Path, answer: str) -> None:
    turns = (Turn("user", ("What next?",)), Turn("assistant", ("It moves.",)))
    with pytest.raises(RecordError, match="the answer contains"):
        encoder.layout.text(Sample("a.jsonl:1", turns, answer, {}), [])


def test_a_checkpoint_brings_its_own_system_turn(tmp_path):
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    assert ChatEncoder(reasoner.processor).system_prompt == default_system_prompt()
    reasoner.processor.system_prompt = "Look, then answer."
    again = LatentReasoner.from_pretrained(reasoner.save_pretrained(tmp_path / "own"))
    assert ChatEncoder(again.processor).system_prompt == "Look, then answer."
    (tmp_path / "given.txt").write_text("Answer.")
    assert ChatEncoder(again.processor, system_prompt=tmp_path / "given.txt").system_prompt == "Answer."
    again.processor.system_prompt = "<|im_start|>"
    with pytest.raises(ConfigError, match=r"system_prompt.txt contains"):
        ChatEncoder(again.processor)


def test_text_can_be_kept_as_it_is(encoder):
    verbatim = ChatEncoder(encoder.processor, strip_text=False)
    assert decoded(encoder, verbatim.encode_prompt(asked("\n What? \n")).input_ids) == (
        f"{SYSTEM}<|im_start|>user\n\n What? \n<|im_end|>\n{ASSISTANT}"
    )
