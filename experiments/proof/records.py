"""Record sets of a plan: `python -m experiments.proof.records split|draw|text ...`."""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

SPLITS = ("hop1", "hop2", "hop3", "hop5")
HINT = re.compile(r"\s*<image>")
MISMATCHED = "mismatched"
"""Field of records that were given the clip of another record."""


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read the records of a JSON Lines file."""
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


def mean(values: Iterable[float]) -> float:
    """Mean of at least one value."""
    numbers = list(values)
    return sum(numbers) / len(numbers)


def per_split(values: Sequence[float], splits: Sequence[str], names: Sequence[str] = SPLITS) -> dict[str, float | None]:
    """Mean of all values, and of the values of each split."""
    means: dict[str, float | None] = {"all": round(mean(values), 6)}
    for name in names:
        own = [value for value, split in zip(values, splits, strict=True) if split == name]
        means[name] = round(mean(own), 6) if own else None
    return means


def without_hints(record: dict[str, Any]) -> dict[str, Any]:
    """Remove the hint frames from a frame-indexed record; its reasoning stays."""
    turns = [
        {**turn, "value": HINT.sub("", turn["value"])} if turn["from"] == "gpt" else turn
        for turn in record["conversations"]
    ]
    return {**record, "reasoning_image": [], "conversations": turns}


def write_records(records: Sequence[dict[str, Any]], source: Path, target: Path) -> None:
    """Write records of a file into another folder; relative paths of their clips are rewritten for that folder."""
    from futurel1.curation.curated import curated_record
    from futurel1.data.samples import RawRecord

    target.parent.mkdir(parents=True, exist_ok=True)
    raw = [RawRecord(record, source, number, source.parent, source.name) for number, record in enumerate(records, 1)]
    lines = (json.dumps(curated_record(record, {}, target.parent)) + "\n" for record in raw)
    target.write_text("".join(lines), encoding="utf-8")


def trained_tokens(file: Path, backbone: str, sft: Path) -> int:
    """Count the tokens and latents with a loss in one pass over a file, encoded as in an SFT configuration."""
    from futurel1.data import open_records
    from futurel1.data.chat import ChatEncoder
    from futurel1.models import IGNORE, load_processor

    settings = yaml.safe_load(sft.read_text(encoding="utf-8"))["data"]["init_args"]
    names = ("max_latent_tokens", "fixed_latents", "max_hint_tokens", "system_prompt")
    options = {name: settings[name] for name in names if name in settings}
    encoder = ChatEncoder(load_processor(backbone), **options)
    source = open_records(str(file))
    total = 0
    for number in range(len(source)):
        encoded = encoder.encode(source.sample(number))
        latents = encoded.input_ids == encoder.tokens.latent_id
        total += int(((encoded.labels != IGNORE) | latents).sum())
    return total


def mismatched(records: Sequence[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """Give a random share of the records each other's clips; a single picked record keeps its own clip."""
    changed = list(records)
    picked = random.Random(0).sample(range(len(records)), round(share * len(records)))
    if len(picked) == 1:
        return changed
    for place, other in zip(picked, picked[1:] + picked[:1], strict=True):
        changed[place] = {**records[place], "video": records[other]["video"], MISMATCHED: True}
    return changed


def count_mismatched(records: Sequence[dict[str, Any]]) -> int:
    """Number of records with a wrong clip."""
    return sum(MISMATCHED in record for record in records)


def group_of(record: dict[str, Any]) -> str:
    """The split of a record, or `MISMATCHED` if its clip is wrong."""
    return MISMATCHED if MISMATCHED in record else str(record["question_type"])


def split(records: Path, validation: int, mismatch: float, out: Path) -> None:
    """Write the last records to `validation.jsonl`, and the others to `candidates.jsonl`, a share with a wrong clip."""
    found = read_lines(records)
    if not 0 < validation < len(found):
        raise SystemExit(f"validation is between 1 and {len(found) - 1}, got {validation}")
    if not 0 <= mismatch <= 1:
        raise SystemExit(f"mismatch is a share from 0 to 1, got {mismatch}")
    candidates = mismatched(found[:-validation], mismatch)
    write_records(candidates, records, out / "candidates.jsonl")
    write_records(found[-validation:], records, out / "validation.jsonl")
    _note(out, {"candidates": len(candidates), MISMATCHED: count_mismatched(candidates), "validation": validation})


def draw(records: Path, count: int, seed: int, clean: bool, out: Path) -> None:
    """Sample records without replacement; `clean`: only records with their own clip."""
    found = [record for record in read_lines(records) if not (clean and MISMATCHED in record)]
    if count > len(found):
        raise SystemExit(f"{count} records are to be drawn, but {records} has {len(found)}")
    # A separate random stream: with seed 0, the stream of `mismatched` would pick exactly the records with wrong clips.
    drawn = random.Random(f"draw {seed}").sample(found, count)
    write_records(drawn, records, out / "records.jsonl")
    _note(out, {"records": count, MISMATCHED: count_mismatched(drawn)})


def text(records: Path, validation: Path, backbone: str, sft: Path, out: Path) -> None:
    """Remove the hints, and count the trained tokens with and without them."""
    for source, name in ((records, "records.jsonl"), (validation, "validation.jsonl")):
        write_records([without_hints(record) for record in read_lines(source)], source, out / name)
    tokens = {
        "tokens_with_hints": trained_tokens(records, backbone, sft),
        "tokens": trained_tokens(out / "records.jsonl", backbone, sft),
    }
    _note(out, {"records": len(read_lines(records)), **tokens})


def _note(out: Path, numbers: dict[str, int]) -> None:
    (out / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand."""
    parser = argparse.ArgumentParser(prog="python -m experiments.proof.records", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, numbers, files in (
        ("split", ("validation", "mismatch"), ()),
        ("draw", ("count", "seed"), ()),
        ("text", (), ("validation", "sft")),
    ):
        command = commands.add_parser(name)
        for option in ("records", "out", *files):
            command.add_argument(f"--{option}", type=Path, required=True)
        for option in numbers:
            command.add_argument(f"--{option}", type=float if option == "mismatch" else int, required=True)
        if name == "draw":
            command.add_argument("--clean", type=json.loads, default=False)
        if name == "text":
            command.add_argument("--backbone", required=True)
    options = vars(parser.parse_args(args))
    command_of: dict[str, Callable[..., None]] = {"split": split, "draw": draw, "text": text}
    command_of[options.pop("command")](**options)


if __name__ == "__main__":
    main()
