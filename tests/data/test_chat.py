"""From a record to token ids, labels and pixels: labels, latents, lengths, refusals, cache keys, memory."""

import multiprocessing
import pickle
import resource
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_samples import (
    ASSISTANT,
    FOUR_PADS,
    SYSTEM,
    asked,
    decoded,
    framed,
    parsed,
    pathed,
    png,
    supervised,
    unlabelled,
    whole,
)
from codings import encode, moving_frames
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from futurel1 import LatentReasoner
from futurel1.data import Turn, Video, chat, frame_pool, media
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched, SFTCollator
from futurel1.data.samples import Frame, RecordFileError, Sample
from futurel1.data.video.pyav import PyAVReader
from futurel1.datamodules.loading import count_totals
from futurel1.errors import CheckpointError, ConfigError, MediaError, MissingFileError, RecordError
from futurel1.losses import LatentSFTLoss
from futurel1.models import IGNORE
from futurel1.models.backbones.tiny import tiny_processor
from rounding import assert_same_but_rounding


def test_unlabelled_spans_show_the_frames_to_imagine(encoder, clips):
    def pixels(*hints: int) -> torch.Tensor:
        record = {"video": str(clips["closed"]), "image": [1, 3], "reasoning_image": list(hints)}
        return encoder.encode(parsed(record)).hint_pixel_values

    assert torch.equal(encoder.encode(unlabelled(clips["closed"])).hint_pixel_values, pixels(5, 6, 8))
    assert torch.equal(pixels(5, 6, 8), torch.cat([pixels(5), pixels(6), pixels(8)]))
    assert not torch.equal(pixels(5), pixels(6))


def test_unlabelled_video_trains_beside_labelled_records(clips):
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    encoder = ChatEncoder(reasoner.processor)
    samples = [encoder.encode(make(clips["closed"])) for make in (unlabelled, framed)]
    batch = SFTCollator(encoder.pad_token_id)([Fetched(samples=[sample], skipped=[]) for sample in samples])
    alone = SFTCollator(encoder.pad_token_id)([Fetched(samples=samples[:1], skipped=[])])
    output, own = LatentSFTLoss()(reasoner, batch), LatentSFTLoss()(reasoner, alone)
    assert own.span.tolist() == [0, 0, 1, 1, 2, 2]
    assert output.span.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    # three of START, END and newline, then the end mark and its newline
    assert own.num_tokens == 3 * 3 + 2
    assert own.loss.isfinite()
    assert_same_but_rounding(output.predicted[:6], own.predicted)
    weights = [weight for weight in reasoner.parameters() if weight.requires_grad]
    for part in (own.ce, own.latent):
        gradients = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
        assert sum(gradient.abs().sum() for gradient in gradients if gradient is not None) > 0


def test_labels_are_the_response_without_latents_and_nothing_before_it(encoder, clips):
    encoded = encoder.encode(framed(clips["closed"]))
    span = "<|latent_start|><|latent_end|>\n"
    assert supervised(encoder, encoded) == (
        f"<reason>The ball moves.</reason>\n{span}<reason>It turns.</reason>\n{span}<reason>Then stops.</reason>\n"
        "<answer>It stops.</answer><|im_end|>\n"
    )
    labelled = encoded.labels != IGNORE
    assert torch.equal(encoded.labels[labelled], encoded.input_ids[labelled])
    assert not labelled[: encoded.prompt_length].any()
    # after the header nothing but LATENT is left out
    left_out = encoded.input_ids[encoded.prompt_length :][~labelled[encoded.prompt_length :]]
    assert left_out.tolist() == [encoder.tokens.latent_id] * 4


def test_prompt_part_is_the_conversation_without_the_response(encoder, clips):
    sample = framed(clips["closed"])
    encoded, prompt = encoder.encode(sample), encoder.encode_prompt(sample)
    text = SYSTEM + f"<|im_start|>user\nframe_1{FOUR_PADS}frame_2{FOUR_PADS}What happens next?<|im_end|>\n"
    assert decoded(encoder, prompt.input_ids) == text + "<|im_start|>assistant\n"
    assert torch.equal(encoded.input_ids[: encoded.prompt_length], prompt.input_ids)
    assert torch.equal(encoded.pixel_values, prompt.pixel_values)
    assert prompt.prompt_length == len(prompt)
    assert (prompt.labels == IGNORE).all()
    assert prompt.hint_pixel_values is prompt.hint_grid_thw is None


def test_prompt_has_no_pictures_of_later_turns(encoder, pictures):
    sample = parsed(
        {
            "messages": [
                {"role": "user", "content": "<image>What is it?"},
                {"role": "assistant", "content": "A ball."},
                {"role": "user", "content": "<image>And that?"},
                {"role": "assistant", "content": "A wall."},
            ],
            "images": ["now.png", "wide.png"],
        },
        pictures,
    )
    prompt = encoder.encode_prompt(sample)
    pads = int((prompt.input_ids == encoder.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum())
    assert pads == 4
    assert prompt.image_grid_thw.tolist() == [[1, 4, 4]]


@pytest.mark.parametrize(("budget", "number"), [(1, 1), (2, 1), (4, 2), (32, 28)])
def test_hints_get_their_own_number_of_latents(processor, tmp_path, budget, number):
    Image.new("RGB", (1280, 720)).save(tmp_path / "hd.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "now.png")
    encoder = ChatEncoder(processor, max_latent_tokens=budget)
    encoded = encoder.encode(pathed(tmp_path, reasoning_image=["hd.png"]))
    assert int((encoded.input_ids == encoder.tokens.latent_id).sum()) == number
    assert int(encoded.hint_grid_thw.prod()) == 4 * number == len(encoded.hint_pixel_values)


def test_fixed_latents_gives_exactly_that_many(processor, pictures, clips):
    encoder = ChatEncoder(processor, max_latent_tokens=5, fixed_latents=True)
    for sample in (pathed(pictures), pathed(pictures, reasoning_image=["wide.png"])):
        text = decoded(encoder, encoder.encode(sample).input_ids)
        assert "<|latent_start|>" + "<|latent|>" * 5 + "<|latent_end|>\n" in text
        assert text.count("<|latent|>") == 5
    assert int((encoder.encode(framed(clips["closed"])).input_ids == encoder.tokens.latent_id).sum()) == 10


def test_one_latent_can_be_a_whole_frame(processor, clips):
    """Features of the frame in its own size, pooled; the smaller picture of an L_max of 1 is something else."""
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    reasoner.settings = replace(reasoner.settings, fixed_latent_budget=True, max_latent_tokens=1)
    whole = ChatEncoder(processor, max_latent_tokens=64).encode(framed(clips["closed"]))
    pooled = ChatEncoder(processor, max_latent_tokens=1, fixed_latents=True, max_hint_tokens=64)
    encoded = pooled.encode(framed(clips["closed"]))
    assert torch.equal(encoded.hint_pixel_values, whole.hint_pixel_values)
    assert int((encoded.input_ids == pooled.tokens.latent_id).sum()) == len(encoded.hint_grid_thw) == 2
    batch = SFTCollator(pooled.pad_token_id)([Fetched([encoded], [])])
    with torch.no_grad():
        target = LatentSFTLoss()(reasoner, batch).target
        features = reasoner.encode_hints(whole.hint_pixel_values, whole.hint_grid_thw)
    means = [rows.mean(dim=0) for rows in torch.split(features.embeds, list(features.counts))]
    torch.testing.assert_close(target, torch.stack(means))
    assert pooled.length(framed(clips["closed"])) == len(encoded)


@pytest.mark.parametrize("options", [{"max_hint_tokens": 4}, {"max_hint_tokens": 0, "fixed_latents": True}])
def test_hint_tokens_that_cannot_be_pooled_are_refused(processor, options):
    with pytest.raises(ConfigError, match=r"max_hint_tokens=\d: a number from 1, with fixed_latents: true"):
        ChatEncoder(processor, **options)


def test_length_is_the_number_of_tokens(processor, clips, pictures):
    samples = [
        framed(clips["closed"]),
        pathed(pictures, image=["wide.png"], reasoning_image=["wide.png"]),
        pathed(pictures, answer="Ünïcode 猫 and more"),
        unlabelled(clips["closed"]),
    ]
    for encoder in (ChatEncoder(processor), ChatEncoder(processor, max_latent_tokens=7, fixed_latents=True)):
        for sample in samples:
            assert encoder.length(sample) == len(encoder.encode(sample))


def test_each_video_of_a_record_is_opened_once(encoder, clips, monkeypatch):
    opened = []
    original = media.open_video
    monkeypatch.setattr(media, "open_video", lambda path, backend: opened.append(path) or original(path, backend))
    video = Video(clips["closed"])
    sample = framed(clips["closed"])
    sample = replace(
        sample, turns=(replace(sample.turns[0], parts=(*sample.turns[0].parts, video, video)), sample.turns[1])
    )
    encoder.length(sample)
    encoder.encode(sample)
    assert opened == [clips["closed"]] * 2


def test_too_long_names_both_numbers(processor, clips):
    sample = framed(clips["closed"])
    tokens = len(ChatEncoder(processor).encode(sample))
    assert len(ChatEncoder(processor, max_length=tokens).encode(sample)) == tokens
    with pytest.raises(RecordError, match=rf"data.json:1: {tokens} tokens, more than max_length={tokens - 1};"):
        ChatEncoder(processor, max_length=tokens - 1).encode(sample)


def conversation(*turns: tuple[str, str, bool | None]) -> Sample:
    return parsed({"messages": [{"role": role, "content": text, "loss": loss} for role, text, loss in turns]})


def test_turns_that_are_not_to_be_learned_have_no_labels(encoder):
    turns = [("user", "What?"), ("assistant", "Draft."), ("user", "Better?"), ("assistant", "It."), ("user", "Sure?"),
             ("assistant", "Yes.")]  # fmt: skip
    whole = encoder.encode(conversation(*((*turn, None) for turn in turns)))
    for wanted in [(True, False, True), (False, True, True), (False, False, True), (True, True, True)]:
        losses = iter(wanted)
        sample = conversation(*((*turn, next(losses) if turn[0] == "assistant" else None) for turn in turns))
        encoded = encoder.encode(sample)
        assert torch.equal(encoded.input_ids, whole.input_ids)
        said = [text for text, kept in zip(("Draft.", "It.", "Yes."), wanted, strict=True) if kept]
        assert supervised(encoder, encoded) == "".join(f"{text}<|im_end|>\n" for text in said)
        assert encoded.labels[encoded.prompt_length] == encoded.input_ids[encoded.prompt_length]
        assert (encoded.labels[: encoded.prompt_length] == IGNORE).all()
        assert encoder.length(sample) == len(encoded)


def drafted(pictures: Path, loss: bool) -> Sample:
    """Two responses with a hint each, the first of which may be left out of the loss."""
    turns = [
        {"from": "human", "value": "<image>Draft?"},
        {"from": "gpt", "value": "It moves.<image>", "loss": loss},
        {"from": "human", "value": "What happens next?"},
        {"from": "gpt", "value": "It falls.<image>"},
    ]
    return pathed(pictures, conversations=turns, reasoning_image=["soon.png", "late.png"])


def test_latents_of_turns_that_are_not_to_be_learned_are_not_aligned(encoder, pictures):
    samples = [drafted(pictures, loss) for loss in (True, False)]
    both, one = (SFTCollator(encoder.pad_token_id)([Fetched([encoder.encode(sample)], [])]) for sample in samples)
    assert torch.equal(both.input_ids, one.input_ids)
    assert torch.equal(both.hint_pixel_values, one.hint_pixel_values)  # the turn is read, hints included
    assert count_totals([both], encoder.tokens)[1] == 4
    tokens, latents = count_totals([one], encoder.tokens)
    assert latents == 2
    reasoner = LatentReasoner.from_pretrained("tiny@random")
    for feedback in ("teacher", "self"):
        objective = LatentSFTLoss(latent_feedback=feedback)
        with torch.no_grad():
            first, second = objective(reasoner, both), objective(reasoner, one)
        assert (second.num_tokens, second.num_latents) == (tokens, latents)
        assert torch.equal(second.predicted, first.predicted[2:])
        assert torch.equal(second.target, first.target[2:])
        assert second.span.tolist() == [0, 0]
    # the stand-in that keeps ranks in step stops before hints, whose pictures it has not
    assert decoded(encoder, encoder.encode_prompt(samples[1]).input_ids).count("assistant\n") == 1


@pytest.mark.parametrize("call", ["encode", "encode_prompt", "length"])
@pytest.mark.parametrize("damage", ["text", "cut", "gone", "folder", "empty"])
@pytest.mark.parametrize("case", ["video", "image", "videos", "images", "typed", "hint"])
def test_errors_of_media_name_record_and_field(encoder, clips, pictures, tmp_path, call, damage, case):
    if case == "hint" and call == "encode_prompt":
        pytest.skip("prompts have no hints")
    good = (clips["closed"] if "video" in case else pictures / "now.png").read_bytes()
    media = tmp_path / ("bad.mp4" if "video" in case else "bad.png")
    media.write_bytes(good)
    turns = [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "r <image>"}]
    asked = {"role": "user", "content": [{"type": "image", "image": media.name}, {"type": "text", "text": "q"}]}
    hinted = {"image": ["good.png"], "reasoning_image": ["good.png"], "conversations": turns, "answer": "a"}
    (tmp_path / "good.png").write_bytes((pictures / "now.png").read_bytes())
    record: dict[str, Any] = {
        "video": hinted | {"video": media.name, "image": [1], "reasoning_image": [2]},
        "image": hinted | {"image": [media.name]},
        "hint": hinted | {"reasoning_image": [media.name]},
        "videos": {"messages": [{"role": "user", "content": "<video>q"}, {"role": "assistant", "content": "r"}],
                   "videos": [media.name]},
        "images": {"messages": [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "r"}],
                   "images": [media.name]},
        "typed": {"messages": [asked, {"role": "assistant", "content": "r"}]},
    }[case]  # fmt: skip
    sample = parsed(record, tmp_path)
    media.unlink()
    if damage == "folder":
        media.mkdir()
    elif damage != "gone":
        media.write_bytes({"text": b"some text", "cut": good[: len(good) // 2], "empty": b""}[damage])
    field = {"hint": "reasoning_image", "typed": "messages.content"}.get(case, case)
    error = RecordFileError if damage == "gone" else MediaError
    with pytest.raises(error, match=rf"^data\.json, record 1, field '{field}': .*{media.name}"):
        getattr(encoder, call)(sample)


def test_errors_of_embedded_images_name_record_and_field(encoder):
    turns = [{"role": "user", "content": "<image><image>q"}, {"role": "assistant", "content": "r"}]
    sample = parsed({"messages": turns, "images": [b"no image", b"no image either"]})
    with pytest.raises(MediaError, match=r"^data\.json, record 1, image 1: not a readable image .*\(field 'images'\)"):
        encoder.encode(sample)


def test_errors_of_the_file_system_are_of_the_record(encoder, pictures, monkeypatch):
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(pictures / "now.png"))

    monkeypatch.setattr(media, "read_image", denied)
    with pytest.raises(MediaError, match=r"data\.json, record 1, field 'image': .*Permission denied"):
        encoder.encode(pathed(pictures))


def test_media_of_no_record_are_named_by_their_path_alone(encoder, tmp_path):
    (tmp_path / "t.mp4").write_text("text")
    with pytest.raises(MediaError, match=r"^/.*t\.mp4: not an MP4"):
        encoder.encode_prompt(Sample("question", (Turn("user", (Video(tmp_path / "t.mp4"), "q")),), None, {}))


def test_tokenizer_without_latent_tokens_is_refused():
    with pytest.raises(CheckpointError, match="the tokenizer lacks"):
        ChatEncoder(tiny_processor())


@pytest.mark.parametrize(
    "options",
    [
        {"max_latent_tokens": 0},
        {"max_length": 0},
        {"video_max_frames": 1},
        {"video_fps": 0.0},
        {"video_fps": float("nan")},
        {"video_frame_tokens": 3},
    ],
)
def test_values_that_cannot_work_are_refused(processor, options):
    with pytest.raises(ConfigError, match="must be at least 1"):
        ChatEncoder(processor, **options)


def test_encoder_is_picklable(encoder, clips):
    sample = framed(clips["closed"])
    first, second = encoder.encode(sample), pickle.loads(pickle.dumps(encoder)).encode(sample)
    assert torch.equal(first.input_ids, second.input_ids)
    assert torch.equal(first.labels, second.labels)
    assert torch.equal(first.hint_pixel_values, second.hint_pixel_values)


class Spy:
    """Calls pass through to the processor part and are recorded."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.calls: list[dict[str, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(kwargs)
        return self.target(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


def test_each_frame_is_processed_as_it_is_decoded_and_each_video_decoded_once(
    processor, clips, frame_number, monkeypatch
):
    encoder = ChatEncoder(processor)
    reads = []
    original = PyAVReader.read

    def read(reader, numbers, convert):
        reads.append(sorted(numbers))
        return original(reader, numbers, convert)

    monkeypatch.setattr(PyAVReader, "read", read)
    whole, image = Spy(processor), Spy(processor.image_processor)
    whole.image_processor = image
    encoder.processor = whole
    encoder.encode(framed(clips["closed"]))

    pool = frame_pool(48)
    assert reads == [[pool[0], pool[2], pool[4], pool[7]]]
    assert all("images" not in call for call in whole.calls)
    assert [[frame_number(picture) for picture in call["images"]] for call in image.calls] == [
        [pool[0]], [pool[2]], [pool[4]], [pool[7]]
    ]  # fmt: skip
    assert [picture.size for call in image.calls for picture in call["images"]] == [(64, 48)] * 2 + [(64, 32)] * 2


def test_pixel_values_are_of_the_right_frames_in_order(encoder, clips, frame_number):
    encoded = encoder.encode(framed(clips["one_key"]))
    pool = frame_pool(48)

    def numbers(values: torch.Tensor, grid: torch.Tensor) -> list[int]:
        pieces = values.split(grid.prod(dim=-1).tolist())
        # patches are normalised by 0.5, 0.5
        greys = [round(float(piece.mean() * 0.5 + 0.5) * 255) for piece in pieces]
        return [frame_number(Image.new("RGB", (2, 2), (grey,) * 3)) for grey in greys]

    assert numbers(encoded.pixel_values, encoded.image_grid_thw) == [pool[0], pool[2]]
    assert numbers(encoded.hint_pixel_values, encoded.hint_grid_thw) == [pool[4], pool[7]]


def test_damaged_and_missing_media_are_named(encoder, tmp_path, clips):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clips["closed"].read_bytes()[:2000])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        encoder.encode(framed(cut))
    cut_sample = framed(cut)
    cut.unlink()
    with pytest.raises(MissingFileError, match=r"cut\.mp4"):
        encoder.encode(cut_sample)


def test_cache_keys_tell_frames_sizes_and_uses_apart(processor, clips, tmp_path):
    encoder = ChatEncoder(processor, keys=True)
    assert encoder.encode(framed(clips["closed"])).image_keys == encoder.encode(framed(clips["closed"])).image_keys
    encoded = encoder.encode(framed(clips["closed"]))
    assert len(encoded.image_keys) == len(encoded.hint_keys) == 2
    assert len({*encoded.image_keys, *encoded.hint_keys}) == 4
    prompt = encoder.encode_prompt(framed(clips["closed"]))
    assert (prompt.image_keys, prompt.hint_keys) == (encoded.image_keys, ())
    assert ChatEncoder(processor).encode(framed(clips["closed"])).image_keys == ()

    # one picture as observed frame and as hint with the same grid: resized by other code, so not the same pixels
    Image.effect_noise((70, 70), 60).convert("RGB").save(tmp_path / "noise.png")
    both = encoder.encode(pathed(tmp_path, image=["noise.png"], reasoning_image=["noise.png"]))
    assert both.image_grid_thw.tolist() == both.hint_grid_thw.tolist()
    assert not torch.equal(both.pixel_values, both.hint_pixel_values)
    assert both.image_keys != both.hint_keys


def test_cache_keys_change_with_the_rules_of_encoding(processor, clips, monkeypatch):
    before = ChatEncoder(processor, keys=True).encode(framed(clips["closed"]))
    monkeypatch.setattr(chat, "ENCODING", chat.ENCODING + 1)
    after = ChatEncoder(processor, keys=True).encode(framed(clips["closed"]))
    assert not {*before.image_keys, *before.hint_keys} & {*after.image_keys, *after.hint_keys}


def test_cache_keys_change_with_the_file(processor, tmp_path):
    encoder = ChatEncoder(processor, keys=True)
    Image.new("RGB", (64, 48)).save(tmp_path / "now.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "soon.png")
    before = encoder.encode(pathed(tmp_path)).image_keys
    Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / "now.png")
    assert encoder.encode(pathed(tmp_path)).image_keys != before


def test_cache_keys_change_with_the_image_processor(encoder: ChatEncoder) -> None:
    import copy

    other = copy.deepcopy(encoder.processor)
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert ChatEncoder(other)._image_settings != ChatEncoder(encoder.processor)._image_settings
    assert ChatEncoder(encoder.processor)._image_settings == encoder._image_settings


@pytest.fixture(scope="module")
def giant(tmp_path_factory) -> Path:
    """A clip of 4096 x 4096 pixels in a few kilobytes."""
    path = tmp_path_factory.mktemp("giant") / "giant.mp4"
    frames = [np.zeros((4096, 4096, 3), np.uint8)] * 9
    return encode(path, frames, options={"preset": "ultrafast", "tune": "zerolatency"})


def peak() -> int:
    """Most megabytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def added_memory(encoder: ChatEncoder, sample: Sample) -> int:
    torch.set_num_threads(1)  # threads of OpenMP do not survive a fork: with two, this would wait for ever
    before = peak()
    encoder.encode(sample)
    return peak() - before


def test_giant_frames_take_little_memory(processor, giant):
    """A frame has 50 MB as RGB and half of that as it is decoded, of which a few are held."""
    assert giant.stat().st_size < 100_000
    shown = ChatEncoder(processor, video_fps=100, video_max_frames=8)
    hints = parsed({"video": str(giant), "image": [1], "reasoning_image": [*range(1, 9)]})
    with multiprocessing.get_context("fork").Pool(1) as pool:
        # Eight at full size are 400 MB, and as much again as an array of all.
        assert pool.apply(added_memory, (shown, whole(giant))) < 300
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(added_memory, (ChatEncoder(processor, max_length=40_000), hints)) < 900


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_giant_picture_is_refused_before_it_is_decoded(encoder, tmp_path, monkeypatch):
    path = tmp_path / "giant.png"
    Image.new("1", (13_000, 13_000)).save(path)
    assert path.stat().st_size < 200_000
    loaded: list[Any] = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: loaded.append(image))
    sample = pathed(tmp_path, image=["giant.png"], reasoning_image=["giant.png"])
    with pytest.raises(MediaError, match=r"giant\.png: a picture of 13000 x 13000 pixels, more than 67108864 in all"):
        encoder.encode(sample)
    with pytest.raises(MediaError, match=r"giant\.png: a picture of 13000 x 13000 pixels"):
        encoder.length(sample)
    assert loaded == []


def test_a_picture_that_pillow_calls_a_bomb_is_an_error_of_the_library(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "bomb.png"
    Image.new("1", (64, 48)).save(path)
    with pytest.raises(MediaError, match=r"bomb\.png: a picture of too many pixels"):
        encoder.encode(pathed(tmp_path, image=["bomb.png"], reasoning_image=["bomb.png"]))


def test_frames_that_together_exceed_the_length_are_refused_before_all_are_decoded(processor, tmp_path, monkeypatch):
    clip = encode(tmp_path / "clip.mp4", moving_frames(20, 320, 320))
    turns = [{"from": "human", "value": "<image>" * 8 + "What?"}, {"from": "gpt", "value": "It moves."}]
    record = {"video": str(clip), "image": [*range(1, 9)], "conversations": turns, "answer": "B"}
    decoded_frames: list[int] = []
    original = PyAVReader._pixels
    monkeypatch.setattr(
        PyAVReader, "_pixels", lambda reader, frame: decoded_frames.append(frame.pts) or original(reader, frame)
    )
    # A frame has 64 tokens.
    with pytest.raises(RecordError, match=r"data\.json:1: 384 and more tokens, more than max_length=350; raise"):
        ChatEncoder(processor, max_length=350).encode(parsed(record))
    assert len(decoded_frames) == 6
    with pytest.raises(RecordError, match="384 and more tokens"):
        ChatEncoder(processor, max_length=350).encode_prompt(parsed(record))


def test_a_wrong_backend_lists_the_choices(processor):
    with pytest.raises(ConfigError, match="video_backend must be one of auto, pyav, decord, torchcodec, got 'opencv'"):
        ChatEncoder(processor, video_backend="opencv")


def test_embedded_image_is_read_as_its_file_is(encoder, tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (48, 96, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "plain.jpg")
    for name in ("turned.png", "plain.jpg"):
        stored = asked(Frame(tmp_path / name, None), "What?")
        embedded = asked(Frame(Path("bench.parquet, record 1"), None, (tmp_path / name).read_bytes()), "What?")
        first, second = encoder.encode_prompt(stored), encoder.encode_prompt(embedded)
        assert torch.equal(first.pixel_values, second.pixel_values)
        assert torch.equal(first.input_ids, second.input_ids)
        assert encoder.length(stored) == encoder.length(embedded)


def test_embedded_images_of_one_place_are_kept_apart(encoder):
    place = Path("bench.parquet")
    frames = [Frame(place, None, png(10)), Frame(place, None, png(200, (128, 96))), Frame(place, None, png(10))]
    sample = asked(*frames, "What?")
    encoded = ChatEncoder(encoder.processor, keys=True).encode_prompt(sample)
    assert encoded.image_grid_thw.tolist() == [[1, 4, 4], [1, 6, 8], [1, 4, 4]]
    assert encoded.image_keys[0] == encoded.image_keys[2] != encoded.image_keys[1]
    assert encoder.length(sample) + len(encoder.processor.tokenizer(ASSISTANT)["input_ids"]) == len(encoded)
    assert b"PNG" not in repr(sample).encode()


def test_embedded_image_that_cannot_be_read_is_named(encoder):
    place = Path("bench.parquet, record 7, question image 2")
    deep = BytesIO()
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(deep, "PNG")
    for data, says in [
        (b"not an image", "not a readable image"),
        (png(3)[:60], "not a readable image"),
        (deep.getvalue(), "exceed 8 bits per channel"),
    ]:
        with pytest.raises(MediaError, match=rf"bench\.parquet, record 7, question image 2: .*{says}"):
            encoder.encode_prompt(asked(Frame(place, None, data), "What?"))
