from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from futurel1.datamodules import RolloutPromptDataModule
from futurel1.datamodules.rollout_prompts import PromptStream
from futurel1.errors import ConfigError, RecordError
from futurel1.rollout import RolloutSettings
from futurel1.worlds import write_world


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file each of RL records, training records and FutureBench records, two of each."""
    out = tmp_path_factory.mktemp("records")
    write_world(out, train=2, test=0, rl=2, size=64, task="next_zone", progress=False)
    (out / "prompt.txt").write_text("Think, then answer.")
    clip = "videos/rl-00000.mp4"
    problems = [
        {"problem": "<video>\nWhat happens next?\nA. stay\nB. go", "answer": "<answer>B</answer>", "videos": [clip],
         "problem_type": "multiple choice"},
        {"problem": "<video>\nHow many bounces?", "answer": "2", "videos": [clip], "problem_type": "numerical"},
    ]  # fmt: skip
    (out / "problems.jsonl").write_text("".join(json.dumps(record) + "\n" for record in problems))
    bench = [
        {"id": f"q{number}", "video_path": clip, "question_type": "hop1",
         "qa": {"Question": "Where?", "Options": {"A": "left", "B": "right", "C": "up", "D": "down"}, "Answer": "A"}}
        for number in range(2)
    ]  # fmt: skip
    (out / "bench.json").write_text(json.dumps(bench))
    return out


def make_data(records: Path, *files: str, **options: object) -> RolloutPromptDataModule:
    defaults = {
        "train": [str(records / file) for file in files], "processor": "tiny@random", "num_workers": 0,
        "system_prompt": str(records / "prompt.txt"), "video_max_frames": 2, "video_frame_tokens": 4,
    }  # fmt: skip
    return RolloutPromptDataModule(**{**defaults, **options})  # type: ignore[arg-type]


ALL = ("problems.jsonl", "rl.jsonl", "bench.json")


def test_records_of_all_kinds_stand_in_one_list(records: Path) -> None:
    stream = PromptStream(make_data(records, *ALL).dataset("train"), shuffle=False)
    taken = list(stream.take(0, 6))
    assert [index for index, _ in taken] == list(range(6))
    infos = [sample.info for _, sample in taken if sample is not None]
    assert [info.answer for info in infos][:2] == ["B", "2"]
    letters = [json.loads(line)["letter"] for line in (records / "rl.jsonl").read_text().splitlines()]
    assert [info.answer for info in infos][2:] == [*letters, "A", "A"]
    kinds = ["multiple choice", "numerical", "hop1", "hop1", "hop1", "hop1"]
    assert [info.question_type for info in infos] == kinds
    shown = [sample.pixel_values_videos if sample.pixel_values is None else sample.pixel_values
             for _, sample in taken if sample]  # fmt: skip
    assert all(pixels is not None for pixels in shown)


def test_every_pass_has_another_order_and_every_record_once(records: Path) -> None:
    dataset = make_data(records, *ALL).dataset("train")
    orders = [[PromptStream(dataset, seed=seed).number(index) for index in range(24)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    passes = [orders[0][start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(order) == list(range(6)) for order in passes)
    assert len({tuple(order) for order in passes}) > 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_draw_is_the_same_prompt_for_every_number_of_ranks(records: Path, num_workers: int) -> None:
    dataset = make_data(records, *ALL).dataset("train")
    one = {index: sample.sample_id for index, sample in PromptStream(dataset).take(2, 9) if sample}
    for world_size in (2, 3):
        shared: dict[int, str] = {}
        for rank in range(world_size):
            stream = PromptStream(dataset, num_workers=num_workers)
            # in two bites: the second goes on where the first ended
            for first, count in ((2, 6), (8, 3)):
                taken = stream.take(first, count, rank, world_size)
                shared |= {index: sample.sample_id for index, sample in taken if sample}
        assert shared == one
    again = PromptStream(dataset)
    list(again.take(0, 3))
    assert [sample.sample_id for _, sample in again.take(2, 1) if sample] == [one[2]]  # back to a index before


def test_loading_draws_nothing_from_the_global_random_state(records: Path) -> None:
    stream = PromptStream(make_data(records, *ALL).dataset("train"))
    before = torch.get_rng_state()
    list(stream.take(0, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_records_that_cannot_be_used_are_skipped_or_named(records: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    good = json.loads((records / "problems.jsonl").read_text().splitlines()[0])
    good["videos"] = [str(records / good["videos"][0])]
    bad.write_text("".join(json.dumps(record) + "\n" for record in (good, {**good, "videos": ["gone.mp4"]})))
    reported: list[str] = []
    dataset = make_data(records, train=str(bad), on_error="skip").dataset("train")
    stream = PromptStream(
        dataset, shuffle=False, report=lambda skipped: reported.extend(record.id for record in skipped)
    )
    assert [sample is None for _, sample in stream.take(0, 2)] == [False, True]
    assert len(reported) == 1
    strict = PromptStream(make_data(records, train=str(bad)).dataset("train"), shuffle=False)
    with pytest.raises(RecordError, match=r"gone\.mp4"):
        list(strict.take(0, 2))


def test_stages_fall_back_and_missing_ones_are_named(records: Path) -> None:
    with pytest.raises(ConfigError, match=r"give data\.train"):
        RolloutPromptDataModule()
    data = make_data(records, train=None, val=str(records / "rl.jsonl"))
    assert len(data.dataset("test")) == len(data.dataset("val")) == 2
    with pytest.raises(ConfigError, match=r"no records for train: give data\.train"):
        data.dataset("train")
    assert make_data(records, *ALL).val_dataloader() == []
    with pytest.raises(ConfigError, match="NoneType makes none: use LADAPOModule"):
        make_data(records, *ALL).train_dataloader()
    assert data.state_dict() == {}


def weighted(records: Path, weight: float) -> RolloutPromptDataModule:
    """A data module whose training loader exists."""
    entries = [{"path": str(records / ALL[0]), "weight": weight}, {"path": str(records / ALL[1]), "weight": 1}]
    data = make_data(records, train=entries)
    rollout = RolloutSettings(batch_size=2, generation_batch_size=2)
    data.trainer = Mock(accumulate_grad_batches=1, global_rank=0, world_size=1)
    data.trainer.lightning_module = Mock(rollout=rollout, processor=None)
    data.train_dataloader()
    return data


def test_weights_that_differ_from_the_interrupted_run_are_refused(records: Path) -> None:
    state = weighted(records, 3).state_dict()
    assert state["mixture"] == [[2, 2], [3, 1]]
    weighted(records, 3).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"weights or sizes in data\.train are not those of the interrupted run"):
        weighted(records, 1).load_state_dict(state)
    later = make_data(records, train=str(records / ALL[0]))
    later.load_state_dict(state)
    later.trainer = weighted(records, 1).trainer
    with pytest.raises(ConfigError, match="weights or sizes"):
        later.train_dataloader()
