"""Samples per second of whole records, from the video file to the batch, against the plain way.

    python benchmarks/loading.py [--short 32] [--long 8] [--long_seconds 300] [--width 640 --height 360] [--repeats 3]
        [--processor qwen3-vl-8b@random]

A record shows six frames of the eight-frame pool of its video, four observed and two to imagine. All ways do all of it:
decode, processor, token ids, labels, collation, in one process and one thread. Seconds are those of the processor, the
least of the repeats: what else runs on a machine only adds to them.

    plain     decodes the video in order with PyAV, every frame to RGB, up to the last one that is wanted; gives all
              pictures of a record to the Hugging Face processor, and finds the labels in a loop over the tokens
    lean      the same, but only the wanted frames become RGB
    futurel1  `ChatEncoder` and `SFTCollator`

Clips are H.264 of 30 frames per second with x264's own key frames; picture limits are Qwen3-VL's. Ids, labels and
pixels of all ways are compared. The last line is the text of the same records alone, as the tokenizer takes it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from futurel1.data import SFTBatch, frame_pool, open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import Fetched, SFTCollator
from futurel1.data.samples import Sample
from futurel1.models import IGNORE, load_processor
from meters import machine

RATE = 30
OBSERVED, HINTS = [1, 2, 3, 4], [6, 8]
QWEN_LIMITS = {"shortest_edge": 256 * 32 * 32, "longest_edge": 16384 * 32 * 32}
BATCH = 4


def write_clip(path: Path, seconds: int, width: int, height: int, seed: int) -> None:
    """Shapes that move over noise; clips longer than 15 s repeat their first 15 s, packet by packet."""
    rng = np.random.default_rng(seed)
    part = min(seconds, 15) * RATE
    rows, columns = np.mgrid[:height, :width]
    texture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
    speed = rng.integers(2, 7, (4, 2))
    start = rng.integers(0, min(width, height), (4, 2))
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        packets = []
        for number in range(part):
            picture = np.roll(texture, number, axis=1)
            for shape, (place, step) in enumerate(zip(start, speed, strict=True)):
                x, y = (place + step * number) % (width, height)
                inside = (columns - x) ** 2 + (rows - y) ** 2 < (height // 8) ** 2
                picture[inside] = 255 - 50 * shape
            packets += stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        packets += stream.encode(None)
        kept = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        unit = packets[0].time_base
        length = round(part / RATE / unit)
        for repeat in range(seconds * RATE // part):
            for data, pts, dts, is_keyframe in kept:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + repeat * length, dts + repeat * length
                packet.is_keyframe, packet.time_base, packet.stream = is_keyframe, unit, stream
                output.mux(packet)


def write_records(folder: Path, count: int, seconds: int, options: argparse.Namespace) -> Path:
    """Clips and a file of frame-indexed records."""
    lines = []
    for number in range(count):
        clip = folder / f"{seconds}-{number}.mp4"
        write_clip(clip, seconds, options.width, options.height, number)
        question = "".join(f"frame_{index}\n<image>\n" for index in OBSERVED) + "What happens next?"
        thoughts = " <image>\n".join(f"THOUGHT {index}: It moves on." for index in range(len(HINTS))) + " <image>"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": thoughts}]
        record = {"video": clip.name, "image": OBSERVED, "reasoning_image": HINTS, "conversations": turns}
        lines.append(json.dumps(record | {"answer": "It leaves."}))
    path = folder / f"{seconds}.jsonl"
    path.write_text("\n".join(lines))
    return path


def plain_frames(path: Path, indices: list[int], lean: bool) -> dict[int, Image.Image]:
    """Pool frames, decoded in order."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        pool = frame_pool(stream.frames)
        wanted = {pool[index - 1] for index in indices}
        pictures = {}
        for number, frame in enumerate(container.decode(stream)):
            pixels = frame.to_ndarray(format="rgb24") if number in wanted or not lean else None
            if number in wanted:
                pictures[number] = Image.fromarray(pixels)
            if number == max(wanted):
                break
    return {index: pictures[pool[index - 1]] for index in indices}


def plain_sample(sample: Sample, encoder: ChatEncoder, lean: bool) -> dict[str, torch.Tensor]:
    """What the Hugging Face processor makes of a record."""
    processor, tokens = encoder.processor, encoder.tokens
    pictures = plain_frames(sample.observed[0].path, [*OBSERVED, *HINTS], lean)
    hints = processor.image_processor(
        images=[encoder.as_hint(pictures[index]) for index in HINTS], do_resize=False, return_tensors="pt"
    )
    counts = [int(grid.prod()) // encoder.merge**2 for grid in hints["image_grid_thw"]]
    text = encoder.layout.text(sample, counts)
    inputs = processor(text=[text], images=[pictures[index] for index in OBSERVED], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    header = processor.tokenizer("<|im_start|>assistant\n")["input_ids"]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels, inside = [], False
    for place, token in enumerate(ids):
        inside |= ids[place - len(header) : place] == header
        # the line break after the end of the turn is learned, too
        after_end = place > 0 and ids[place - 1] == end and labels[-1] != IGNORE
        labels.append(token if (inside or after_end) and token != tokens.latent_id else IGNORE)
        inside &= token != end
    return {
        "input_ids": inputs["input_ids"][0],
        "labels": torch.tensor(labels),
        "pixel_values": inputs["pixel_values"],
        "hint_pixel_values": hints["pixel_values"],
    }


def plain_batches(samples: list[Sample], encoder: ChatEncoder, lean: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of the plain way."""
    for start in range(0, len(samples), BATCH):
        made = [plain_sample(sample, encoder, lean) for sample in samples[start : start + BATCH]]
        padded = {"input_ids": encoder.pad_token_id, "labels": IGNORE}
        yield {
            name: pad_sequence([one[name] for one in made], batch_first=True, padding_value=padded[name])
            if name in padded
            else torch.cat([one[name] for one in made])
            for name in made[0]
        }


def our_batches(samples: list[Sample], encoder: ChatEncoder) -> Iterator[SFTBatch]:
    """Batches of `ChatEncoder`."""
    collate = SFTCollator(encoder.pad_token_id)
    for start in range(0, len(samples), BATCH):
        yield collate([Fetched([encoder.encode(sample) for sample in samples[start : start + BATCH]], [])])


def difference(ours: SFTBatch, plain: dict[str, torch.Tensor]) -> float:
    """Largest difference of any value; infinite where ids or labels differ."""
    if not (torch.equal(ours.input_ids, plain["input_ids"]) and torch.equal(ours.labels, plain["labels"])):
        return float("inf")
    pairs = [(getattr(ours, name), plain[name]) for name in ("pixel_values", "hint_pixel_values")]
    return max(float((one - other).abs().max()) for one, other in pairs)


def measure(name: str, path: Path, encoder: ChatEncoder, repeats: int) -> None:
    """Time both ways turn by turn, compare what they make, print a table."""
    source = open_records(path)
    samples = [source[number] for number in range(len(source))]
    pairs = zip(our_batches(samples, encoder), plain_batches(samples, encoder), strict=True)
    largest = max(difference(ours, plain) for ours, plain in pairs)
    ways: dict[str, Any] = {"plain": plain_batches, "lean": partial(plain_batches, lean=True), "futurel1": our_batches}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, batches in ways.items():
            begin = time.process_time()
            for _ in batches(samples, encoder):
                pass
            seconds[way].append(time.process_time() - begin)
    print(f"{len(samples)} records of {name}; largest difference {largest}")
    middle = {way: statistics.median(taken) for way, taken in seconds.items()}
    for way, taken in seconds.items():
        least = min(taken)
        print(
            f"  {way:9} {len(samples) / least:8.2f} samples/s of processor time, {least / len(samples):.3f} s each "
            f"(median {middle[way] / len(samples):.3f}), {min(seconds['plain']) / least:.2f} times plain "
            f"(median {middle['plain'] / middle[way]:.2f})"
        )
    measure_text(samples, encoder, repeats)


def measure_text(samples: list[Sample], encoder: ChatEncoder, repeats: int) -> None:
    """Time the tokenizer on the text of the records."""
    texts = [encoder.layout.text(sample, [encoder.max_latent_tokens] * len(HINTS)) for sample in samples]
    seconds, tokens = [], 0
    for _ in range(repeats):
        begin = time.process_time()
        tokens = sum(len(encoder.processor.tokenizer(text)["input_ids"]) for text in texts)
        seconds.append(time.process_time() - begin)
    least = min(seconds)
    print(
        f"  text alone: {tokens / len(texts):.0f} tokens a record, {len(texts) / least:,.0f} records/s, "
        f"{tokens / least:,.0f} tokens/s"
    )


def main() -> None:
    """Write the clips, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=32, help="clips of 5 seconds")
    parser.add_argument("--long", type=int, default=8, help="clips of --long_seconds")
    parser.add_argument("--long_seconds", type=int, default=300, help="a multiple of 15")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processor", default="tiny@random", help="checkpoint whose tokenizer encodes the text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    processor = load_processor(options.processor)
    processor.image_processor.size = QWEN_LIMITS
    encoder = ChatEncoder(processor)
    print(f"{vars(options)}, {machine('cpu')}, PyAV {av.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name, count, seconds in (
            ("5 s", options.short, 5),
            (f"{options.long_seconds} s", options.long, options.long_seconds),
        ):
            if count:
                measure(name, write_records(Path(folder), count, seconds, options), encoder, options.repeats)


if __name__ == "__main__":
    main()
