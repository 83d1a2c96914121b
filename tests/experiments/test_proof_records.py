"""Records without hints, with another's clip, or sampled at random."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.proof.records import HINT, MISMATCHED, main, read_lines, without_hints


def test_hints_are_taken_out_of_a_record() -> None:
    turns = [
        {"from": "human", "value": "frame_1\n<image>\nWhat next?"},
        {"from": "gpt", "value": "THOUGHT 0: It moves. <image>\nTHOUGHT 1: It stops."},
    ]
    record = {"image": [1], "reasoning_image": [5], "conversations": turns, "answer": "A"}
    bare = without_hints(record)
    assert bare["reasoning_image"] == []
    assert bare["conversations"][1]["value"] == "THOUGHT 0: It moves.\nTHOUGHT 1: It stops."
    assert bare["conversations"][0] == turns[0]
    assert HINT.search(turns[1]["value"])  # the record itself is left as it was


def test_a_share_of_the_candidates_gets_the_clip_of_another(tmp_path: Path) -> None:
    lines = [json.dumps({"id": str(n), "video": f"{n}.mp4", "image": [1], "conversations": []}) for n in range(50)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    main(["split", "--records", str(tmp_path / "train.jsonl"), "--validation", "10", "--mismatch", "0.25",
          "--out", str(tmp_path / "split")])  # fmt: skip
    candidates, validation = (read_lines(tmp_path / "split" / f"{name}.jsonl") for name in ("candidates", "validation"))
    own = [record["video"].endswith(f"/{record['id']}.mp4") for record in candidates]
    assert [record.get(MISMATCHED, False) for record in candidates] == [not value for value in own]
    assert own.count(False) == 10
    assert sorted(record["video"] for record in candidates) == sorted(f"../{n}.mp4" for n in range(40))
    assert all(record["video"] == f"../{record['id']}.mp4" for record in validation)
    wrong = []
    for seed in range(20):
        out = tmp_path / f"drawn-{seed}"
        main(["draw", "--records", str(tmp_path / "split" / "candidates.jsonl"), "--count", "20", "--seed", str(seed),
              "--out", str(out)])  # fmt: skip
        wrong.append(sum(MISMATCHED in record for record in read_lines(out / "records.jsonl")))
        assert json.loads((out / "numbers.json").read_text()) == {"records": 20, MISMATCHED: wrong[-1]}
    # Samples are independent of the choice of wrong clips: of 10 in 40, a sample of 20 has all 10 with p = 0.0002.
    assert max(wrong) < 10
    assert 4 < sum(wrong) / 20 < 6
    main(["draw", "--records", str(tmp_path / "split" / "candidates.jsonl"), "--count", "30", "--seed", "1",
          "--clean", "true", "--out", str(tmp_path / "clean")])  # fmt: skip
    assert not any(MISMATCHED in record for record in read_lines(tmp_path / "clean" / "records.jsonl"))
    with pytest.raises(SystemExit, match="share from 0 to 1"):
        main(["split", "--records", str(tmp_path / "train.jsonl"), "--validation", "10", "--mismatch", "1.5",
              "--out", str(tmp_path / "split")])  # fmt: skip
