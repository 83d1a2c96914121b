"""The tiny backbone's tokenizer, processor and chat template: small, but of the same make as the 8B model's."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from futurel1.data import PromptBatch
from futurel1.models import LATENT_TOKENS, load_processor
from futurel1.models.backbones.tiny import CONTROL_TOKENS, VOCAB_SIZE, _vocabulary, tiny_config, tiny_tokenizer

VOCABULARY = "c4eabbc676553648154703b0a051ac30570a7582302d11dc6990d96f5a6b403b"


@pytest.fixture(scope="module")
def processor():
    return load_processor("tiny@random")


def digest_of_vocabulary():
    return hashlib.sha256(json.dumps(_vocabulary()).encode()).hexdigest()


# ---------------------------------------------------------------------- tokenizer


def test_another_process_learns_the_same_vocabulary():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_tiny; print(test_tiny.digest_of_vocabulary())\n"
    )  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", code, __file__.rpartition("/")[0]],
        env={"PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "1", "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == digest_of_vocabulary(), result.stderr[-2000:]


def test_vocabulary_is_the_same_on_every_machine():
    """Checkpoints of the tiny backbone are passed around with their tokenizer left out."""
    assert digest_of_vocabulary() == VOCABULARY


TOKENIZER = tiny_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example(" two  blanks\n\ttab\r\n and a trailing one ")
@example("A.B.<answer>C</answer>")
def test_any_text_survives(text):
    import unicodedata

    ids = TOKENIZER(text)["input_ids"]
    # The Qwen tokenizers compose characters before they split.
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)
    assert all(0 <= token < VOCAB_SIZE for token in ids)


def test_control_tokens_are_single_ids(processor):
    tokenizer = processor.tokenizer
    ids = [tokenizer(token)["input_ids"] for token in (*CONTROL_TOKENS, *LATENT_TOKENS)]
    assert all(len(single) == 1 for single in ids)
    assert sorted(single[0] for single in ids) == list(range(VOCAB_SIZE - len(ids), VOCAB_SIZE))
    assert ids[-3:] == [[1021], [1022], [1023]]
    assert len(tokenizer) == VOCAB_SIZE
    joined = "x<|latent_start|><|latent|><|latent|><|latent_end|>y"
    assert tokenizer(joined)["input_ids"][1:-1] == [1022, 1021, 1021, 1023]
    # Latent tokens are ordinary added tokens: cleaning up special ones leaves them in the response.
    cleaned = tokenizer.decode(tokenizer(f"{joined}<|im_end|>")["input_ids"], skip_special_tokens=True)
    assert cleaned == joined
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_words_and_tags_take_few_tokens(processor):
    text = "<reason>the red ball bounces off the left wall</reason>\n<answer>B</answer>"
    # `<`, word, `>` for a tag and one piece for a known word, out of 73 bytes.
    assert len(processor.tokenizer(text)["input_ids"]) == 22


def test_configuration_fits_the_tokenizer(processor):
    config = tiny_config()
    to_id = processor.tokenizer.convert_tokens_to_ids
    assert config.image_token_id == to_id("<|image_pad|>") == processor.image_token_id
    assert config.video_token_id == to_id("<|video_pad|>") == processor.video_token_id
    assert config.vision_start_token_id == to_id("<|vision_start|>")
    assert config.vision_end_token_id == to_id("<|vision_end|>")
    assert config.text_config.vocab_size == VOCAB_SIZE
    assert tiny_config(hidden_size=64).vision_config.out_hidden_size == 64
    untied = tiny_config(tie_word_embeddings=False)
    assert not untied.tie_word_embeddings
    assert not untied.text_config.tie_word_embeddings


# ---------------------------------------------------------------------- processor


def frame(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_become_patches_and_placeholders(processor, tiny):
    text = "a<|vision_start|><|image_pad|><|vision_end|>b<|vision_start|><|image_pad|><|vision_end|>"
    images = [Image.fromarray(frame(64, 96)), Image.fromarray(frame(32, 64, seed=1))]
    out = processor(text=[text], images=images, return_tensors="pt")
    assert out["image_grid_thw"].tolist() == [[1, 4, 6], [1, 2, 4]]
    assert out["pixel_values"].shape == (32, 3 * 2 * 16 * 16)
    blocks = ["<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" for count in (6, 2)]
    assert processor.tokenizer.decode(out["input_ids"][0]) == f"a{blocks[0]}b{blocks[1]}"
    # A patch is (channel, time, height, width); with mean and deviation of one half a pixel maps to [-1, 1].
    pixels = out["pixel_values"][0].reshape(3, 2, 16, 16)
    expected = torch.from_numpy(frame(64, 96)[:16, :16]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels[:, 0], expected, atol=1e-5, rtol=0)
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    batch = PromptBatch(out["input_ids"], out["attention_mask"], out["pixel_values"], out["image_grid_thw"])
    with torch.no_grad():
        hidden = tiny(batch.input_ids, batch.attention_mask, tiny.encode(batch))
    assert hidden.shape == (1, out["input_ids"].shape[1], 128)


def test_large_images_are_reduced(processor):
    out = processor(text=["<|image_pad|>"], images=[Image.fromarray(frame(600, 800))], return_tensors="pt")
    assert int((out["input_ids"] == processor.image_token_id).sum()) <= 64
    assert len(out["pixel_values"]) <= 256


def test_a_bare_video_placeholder_becomes_timestamped_blocks(processor, tiny):
    video = np.stack([frame(64, 96, seed) for seed in range(4)])
    out = processor(
        text=["a<|video_pad|>b"],
        videos=[video],
        do_sample_frames=False,
        video_metadata=[{"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}],
        return_tensors="pt",
    )
    assert out["video_grid_thw"].tolist() == [[2, 4, 6]]
    assert out["pixel_values_videos"].shape == (48, 3 * 2 * 16 * 16)
    block = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
    # The middle of each pair of frames: (0 + 0.5) / 2 and (1 + 1.5) / 2 seconds.
    assert processor.tokenizer.decode(out["input_ids"][0]) == f"a<0.2 seconds>{block}<1.2 seconds>{block}b"
    batch = PromptBatch(
        out["input_ids"],
        out["attention_mask"],
        pixel_values_videos=out["pixel_values_videos"],
        video_grid_thw=out["video_grid_thw"],
    )
    with torch.no_grad():
        vision = tiny.encode(batch)
        positions = tiny.backbone.positions(batch.input_ids, batch.attention_mask, vision)
    assert vision.videos.counts == (12,)
    # M-RoPE: the second block starts after the first, three columns, two rows, and its own timestamp.
    first, second = positions[:, 0, batch.input_ids[0] == processor.video_token_id].split(6, dim=1)
    assert (first[1] - first[1].min()).tolist() == [0, 0, 0, 1, 1, 1]
    assert (first[2] - first[2].min()).tolist() == [0, 1, 2, 0, 1, 2]
    assert (second[0] > first.max()).all()


def test_chat_template_is_the_documented_layout(processor):
    messages = [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "1"}, {"type": "image"}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "<answer>A</answer>"}]},
    ]
    turns = (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\n1<|vision_start|><|image_pad|><|vision_end|>?<|im_end|>\n"
        "<|im_start|>assistant\n<answer>A</answer><|im_end|>\n"
    )
    assert processor.apply_chat_template(messages) == turns
    prompt = processor.apply_chat_template(messages[:2], add_generation_prompt=True)
    assert prompt == turns.partition("<answer>")[0]
