from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from futurel1.cli import main
from futurel1.data import open_records
from futurel1.data.chat import ChatEncoder
from futurel1.data.collate import SFTCollator, SFTDataset
from futurel1.datamodules import FutureBenchDataModule, PromptDataModule
from futurel1.errors import ConfigError, FutureL1Error, RecordError
from futurel1.losses import LatentSFTLoss
from futurel1.metrics.functional import intervention_effect
from futurel1.models import LatentBank, LatentReasoner, SpanBudget
from futurel1.models.decoding import DecodingError, Rollout
from futurel1.modules import JSONLinesWriter, LatentPredictor
from futurel1.modules.latent_predictor import LATENT_PARTS
from futurel1.rollout import SamplingSettings
from rounding import assert_same_but_rounding

OPTIONS = {"A": "left", "B": "right", "C": "up", "D": "down"}


def make_trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


@pytest.fixture
def data(world: Path) -> PromptDataModule:
    return PromptDataModule(
        predict=str(world / "test.jsonl"), batch_size=3, num_workers=0, system_prompt=str(world / "prompt.txt")
    )


def test_predictions_are_written_and_a_killed_run_goes_on(world: Path, tmp_path: Path, data: PromptDataModule) -> None:
    module = LatentPredictor(sampling=SamplingSettings(max_new_tokens=8, span_budget="fixed", span_latents=2))
    make_trainer(tmp_path / "whole", callbacks=[JSONLinesWriter()]).predict(module, data)
    whole = (tmp_path / "whole" / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in whole]
    assert [record["id"] for record in records] == [f"test.jsonl:{number}" for number in range(1, 9)]
    assert all(record["tokens"] <= 8 and sum(record["votes"].values()) == pytest.approx(1) for record in records)
    assert {record["expected"] for record in records} <= set("ABCD")
    # killed in the middle of the fourth line
    run = tmp_path / "killed"
    run.mkdir()
    (run / "predictions.jsonl").write_text("\n".join(whole[:3]) + "\n" + whole[3][:20])
    seen: list[str] = []

    class Watched(LatentPredictor):
        def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
            seen.extend(batch.sample_ids)
            return super().predict_step(batch, batch_idx)

    again = PromptDataModule(
        predict=str(world / "test.jsonl"), batch_size=3, num_workers=0, system_prompt=str(world / "prompt.txt")
    )
    module = Watched(sampling=SamplingSettings(max_new_tokens=8, span_budget="fixed", span_latents=2))
    make_trainer(run, callbacks=[JSONLinesWriter()]).predict(module, again)
    assert seen == [record["id"] for record in records[3:]]
    resumed = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for one, other in zip(resumed, records, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_predictions_of_other_settings_are_not_continued(world: Path, tmp_path: Path) -> None:
    def predict(**options: Any) -> None:
        data = PromptDataModule(
            predict=str(world / "test.jsonl"), num_workers=0, system_prompt=str(world / "prompt.txt")
        )
        module = LatentPredictor(sampling=SamplingSettings(**{"max_new_tokens": 2, **options}))
        make_trainer(tmp_path, callbacks=[JSONLinesWriter()], limit_predict_batches=2).predict(module, data)

    predict()
    predict()  # the next two
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 4
    with pytest.raises(ConfigError, match=r"model\.sampling\.max_new_tokens differ"):
        predict(max_new_tokens=3)
    (tmp_path / "predictions.jsonl").write_text('{"id": "test.jsonl:1"}\nnot json\n')
    with pytest.raises(RecordError, match="line 2"):
        predict()


def test_twiffbench_is_judged_after_everything_is_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from futurel1.modules import scorers
    from futurel1.rewards import Judge, JudgeError, Verdict

    monkeypatch.setattr(scorers, "read_images", lambda reference: [])
    judge = Judge("http://127.0.0.1:9/v1", "judge", api_key_env=None)
    asked: list[Any] = []

    def score(items: Any) -> list[Verdict]:
        asked.extend(items)
        verdicts = [Verdict("response", (3, 4), False, "fine", 1, False) for _ in items]
        return [*verdicts[:-1], Verdict("response", None, True, "down", 5, False)]

    monkeypatch.setattr(judge, "score_responses", score)
    lines = (world / "test.jsonl").read_text().splitlines()[:4]
    file = tmp_path / "four.jsonl"
    file.write_text("\n".join(line.replace('"video": "', f'"video": "{world}/') for line in lines) + "\n")
    data = PromptDataModule(test=str(file), batch_size=2, num_workers=0)
    fields = {"reference_reasoning": "it moves"}

    class Judged(LatentPredictor):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            from dataclasses import replace

            super().test_step(replace(batch, info=tuple(replace(info, **fields) for info in batch.info)), batch_idx)

    module = Judged(benchmark="twiffbench", judge=judge, sampling=SamplingSettings(max_new_tokens=3))
    results = make_trainer(tmp_path / "run").test(module, data, verbose=False)[0]
    assert (results["test/cot"], results["test/answer"], results["test/failures"]) == (3.0, 4.0, 1.0)
    assert len(asked) == 4  # all at once
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [sample["score"] for sample in samples] == [[3, 4], [3, 4], [3, 4], None]

    def down(items: Any) -> list[Verdict]:
        raise JudgeError("the judge is down")

    monkeypatch.setattr(judge, "score_responses", down)
    module = Judged(benchmark="twiffbench", judge=judge, sampling=SamplingSettings(max_new_tokens=3))
    with pytest.raises(JudgeError):
        make_trainer(tmp_path / "down").test(module, data, verbose=False)
    assert len((tmp_path / "down" / "samples.jsonl").read_text().splitlines()) == 4  # nothing decoded is lost


def test_every_shape_of_record_keeps_its_own_id(world: Path, tmp_path: Path) -> None:
    framed = json.loads((world / "test.jsonl").read_text().splitlines()[0])
    clip = str(world / framed["video"])
    said = [{"role": "user", "content": "What next?"}, {"role": "assistant", "content": "It moves."}]
    records: list[dict[str, Any]] = [
        {**framed, "video": clip},
        {"video": clip, "question": "What?", "answer": "<ans>up</ans>", "question_images_index": [1]},
        {"messages": said},
        {
            "conversations": [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "up"}],
            "videos": [clip],
        },
        {"messages": said},
    ]
    names: list[str | int] = ["a", "\ud83d", 3, "d", "é"]
    for record, name in zip(records[:-1], names, strict=False):
        record["id"] = name
    records[-1].pop("id", None)
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = PromptDataModule(
        predict=str(tmp_path / "all.jsonl"), batch_size=5, num_workers=0, system_prompt=str(world / "prompt.txt"),
        video_max_frames=2,
    )  # fmt: skip
    module = LatentPredictor("tiny@random", sampling=SamplingSettings(max_new_tokens=1))
    make_trainer(tmp_path / "run", callbacks=[JSONLinesWriter()]).predict(module, data)
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [line["record_id"] for line in lines] == [*names[:4], None]


def test_branches_vote(world: Path, tmp_path: Path, data: PromptDataModule) -> None:
    with pytest.raises(ConfigError, match="do_sample"):
        LatentPredictor(num_branches=4)
    module = LatentPredictor(
        num_branches=4, do_sample=True, sampling=SamplingSettings(max_new_tokens=6, temperature=1.0)
    )
    batches = make_trainer(tmp_path, limit_predict_batches=1).predict(module, data)
    assert batches is not None
    assert len(batches[0]) == 3
    assert all(record["tokens"] > 6 for record in batches[0])  # tokens of all branches


def futurebench_records(world: Path, tmp_path: Path) -> Path:
    records = []
    for number, line in enumerate((world / "test.jsonl").read_text().splitlines()):
        record = json.loads(line)
        question = record["conversations"][0]["value"].split("<image>\n")[-1].split("\n")[0]
        records.append(
            {
                "id": f"q{number}", "video_path": record["video"], "question_type": f"hop{(1, 2, 3, 5)[number % 4]}",
                "qa": {"Question": question, "Options": OPTIONS, "Answer": "ABCD"[number % 4]},
            }
        )  # fmt: skip
    file = tmp_path / "futurebench.json"
    file.write_text(json.dumps(records))
    return file


def test_futurebench_is_scored_and_tabled(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FutureBenchDataModule(
        str(futurebench_records(world, tmp_path)), video_root=str(world), batch_size=3, num_frames=4, num_workers=0
    )
    module = LatentPredictor(
        benchmark="futurebench", name="tiny, untrained", sampling=SamplingSettings(max_new_tokens=4)
    )
    # Every response says B: one question in four is right, in hop2 all of them.
    from futurel1.modules import latent_predictor

    original = latent_predictor.transcripts

    def scripted(rollout: Rollout, tokenizer: Any) -> Any:
        from dataclasses import replace

        return [replace(text, text="<answer>B</answer>") for text in original(rollout, tokenizer)]

    monkeypatch.setattr(latent_predictor, "transcripts", scripted)
    run = tmp_path / "run"
    results = make_trainer(run).test(module, data, verbose=False)[0]
    assert results["test/paper/accuracy"] == pytest.approx(25.0)
    assert results["test/paper/hop2"] == pytest.approx(100.0)
    assert results["test/strict/hop1"] == 0
    assert results["test/tokens_per_sample"] == pytest.approx(4.0)
    assert json.loads((run / "results.json").read_text())["paper/accuracy"] == pytest.approx(25.0)
    table = (run / "results.md").read_text()
    assert "Future-L1-RL" in table
    assert "tiny, untrained" in table
    assert table in capsys.readouterr().out
    assert "\\begin{tabular}" in (run / "results.tex").read_text()
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["id"] for sample in samples] == [f"futurebench.json:{n}" for n in range(1, 9)]
    assert [sample["record_id"] for sample in samples] == [f"q{n}" for n in range(8)]
    assert "NaN" not in (run / "results.json").read_text()
    assert {sample["paper"] for sample in samples} == {"B"}


def test_twiffbench_needs_a_judge() -> None:
    with pytest.raises(ConfigError, match="judge"):
        LatentPredictor(benchmark="twiffbench")


def test_budget_of_spans_is_kept(world: Path, tmp_path: Path, data: PromptDataModule) -> None:
    module = LatentPredictor(sampling=SamplingSettings(max_new_tokens=12, span_budget="fixed", span_latents=3))
    module.configure_model()
    batch = None

    class First(LatentPredictor):
        def predict_step(self, one: Any, batch_idx: int) -> list[dict[str, Any]]:
            nonlocal batch
            batch = one
            return super().predict_step(one, batch_idx)

    make_trainer(tmp_path, limit_predict_batches=1).predict(First(sampling=SamplingSettings(max_new_tokens=1)), data)
    assert batch is not None
    rollout = module.reasoner.generate(
        batch, max_new_tokens=12, budget=SpanBudget.fixed(3), force_start=True, eos_token_id=-1
    )
    assert rollout.span_table[:, 2].eq(3).all()


# ---------------------------------------------------------------------- interventions

SHORT = {"sampling": SamplingSettings(max_new_tokens=8, span_budget="fixed", span_latents=2)}


class Kept(LatentPredictor):
    """Keeps its rollouts."""

    def decode(self, batch: Any) -> Any:
        decoded = super().decode(batch)
        self.rollouts = [*getattr(self, "rollouts", ()), decoded[0]]
        return decoded


def prompts(world: Path, **options: Any) -> PromptDataModule:
    return PromptDataModule(
        **{"predict": str(world / "test.jsonl"), "batch_size": 3, "num_workers": 0, **options},
        system_prompt=str(world / "prompt.txt"),
    )


def predicted(run: Path, world: Path, module: LatentPredictor, **options: Any) -> list[dict[str, Any]]:
    make_trainer(run, callbacks=[JSONLinesWriter()], **options).predict(module, prompts(world))
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"intervention": "mean"}, "latent_bank=None"),
        ({"intervention": "noise"}, "latent_bank=None"),
        ({"intervention": "other"}, "latent_bank=None"),
        ({"latent_bank": "runs/base"}, "intervention='none' and latent_bank='runs/base'"),
        ({"intervention": "zero", "latent_bank": "runs/base"}, "intervention='zero'"),
        ({"intervention": "markers", "latent_bank": "runs/base"}, "intervention='markers'"),
        ({"intervention": "zeros"}, "must be one of"),
        ({"benchmark": "mmlu"}, "benchmark must be one of none, futurebench, twiffbench, got 'mmlu'"),
    ],
)
def test_settings_that_contradict_each_other_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LatentPredictor(**wrong)


def test_latents_are_saved_and_given_to_other_samples(world: Path, tmp_path: Path, opening: str) -> None:
    shared: dict[str, Any] = {**SHORT, "backbone": opening}
    base = Kept(**shared, num_branches=2, do_sample=True, save_latents=True)
    predicted(tmp_path / "base", world, base)
    bank = LatentBank.load(tmp_path / "base")
    assert bank.ids == tuple(f"test.jsonl:{number}" for number in range(1, 9))
    firsts = [
        (own, mask)
        for rollout in base.rollouts
        for own, mask in zip(rollout.latents[::2], rollout.latent_mask[::2], strict=True)
    ]
    for own, count, (latents, mask) in zip(bank.latents, bank.counts.tolist(), firsts, strict=True):
        assert count >= 2
        assert torch.equal(own[:count], latents[mask])
    assert not (tmp_path / "base" / LATENT_PARTS).exists()

    other = Kept(**shared, intervention="other", latent_bank=str(tmp_path / "base"))
    predicted(tmp_path / "other", world, other)
    fed = [
        (own, int(mask.sum()))
        for rollout in other.rollouts
        for own, mask in zip(rollout.latents, rollout.latent_mask, strict=True)
    ]
    for number, (own, count) in enumerate(fed):
        donor = (number + 1) % 8  # ids 1 to 8 are in order as strings too
        for place in range(count):
            assert torch.equal(own[place], bank.latents[donor, min(place, int(bank.counts[donor]) - 1)])
    mean = Kept(**shared, intervention="mean", latent_bank=str(tmp_path / "base" / "latents.safetensors"))
    predicted(tmp_path / "mean", world, mean)
    assert torch.equal(mean.rollouts[0].latents[0, 0], bank.mean)
    noise = Kept(**shared, intervention="noise", latent_bank=str(tmp_path / "base"))
    predicted(tmp_path / "noise", world, noise)
    draws = torch.stack([rollout.latents[0, 0] for rollout in noise.rollouts])
    assert ((draws - bank.mean).abs() < 7 * bank.std).all()
    assert len(draws.unique(dim=0)) == len(draws)
    narrow = LatentBank.from_responses(["a", "b"], [torch.ones(1, 3), torch.ones(1, 3)], [["a.mp4"], ["b.mp4"]])
    narrow.save(tmp_path / "narrow.safetensors")
    module = LatentPredictor(**shared, intervention="other", latent_bank=str(tmp_path / "narrow.safetensors"))
    with pytest.raises(ConfigError, match="3 wide"):
        module.configure_model()


def test_other_latents_are_of_another_video(world: Path, tmp_path: Path, opening: str) -> None:
    """Records 1 to 3 ask about one clip, once by a link to it, 4 to 6 about the next."""
    lines = (world / "test.jsonl").read_text().splitlines()
    records = [json.loads(lines[number // 3]) for number in range(6)]
    (tmp_path / "link.mp4").symlink_to(world / records[0]["video"])
    for record in records:
        record["video"] = str(world / record["video"])
    records[1]["video"] = "link.mp4"
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shutil.copy(world / "prompt.txt", tmp_path)
    shared: dict[str, Any] = {**SHORT, "backbone": opening}
    predicted(tmp_path / "base", tmp_path, Kept(**shared, save_latents=True))
    bank = LatentBank.load(tmp_path / "base")
    assert bank.sources is not None
    assert len(set(bank.sources[:3])) == len(set(bank.sources[3:])) == 1
    other = Kept(**shared, intervention="other", latent_bank=str(tmp_path / "base"))
    predicted(tmp_path / "other", tmp_path, other)
    donors = (3, 3, 3, 0, 0, 0)
    fed = [own[0] for rollout in other.rollouts for own in rollout.latents]
    assert len(fed) == 6
    for latent, donor in zip(fed, donors, strict=True):
        assert torch.equal(latent, bank.latents[donor, 0])


def targets(reasoner: LatentReasoner, records: Path, prompt: Path) -> list[torch.Tensor]:
    """What supervised training compares the latents of records with, record by record."""
    settings = reasoner.settings
    encoder = ChatEncoder(
        reasoner.processor, max_latent_tokens=settings.max_latent_tokens, fixed_latents=settings.fixed_latent_budget,
        max_hint_tokens=settings.max_hint_tokens, system_prompt=prompt,
    )  # fmt: skip
    dataset = SFTDataset(open_records(records), encoder)
    batches = [SFTCollator(encoder.pad_token_id)(dataset.__getitems__([number])) for number in range(len(dataset))]
    return [LatentSFTLoss()(reasoner, batch).target for batch in batches]


@pytest.mark.parametrize(
    ("batch_size", "latents"),
    [
        (3, {}),
        (8, {"max_latent_tokens": 1, "fixed_latent_budget": True, "max_hint_tokens": 4}),
        (8, {"max_latent_tokens": 1, "fixed_latent_budget": True, "max_hint_tokens": 2}),
    ],
    ids=["one_per_token", "pooled", "pooled_from_fewer"],
)
def test_oracle_feeds_the_targets_of_supervised_training(
    world: Path, tmp_path: Path, opening: str, batch_size: int, latents: dict[str, Any]
) -> None:
    reasoner = LatentReasoner.from_pretrained(opening)
    reasoner.settings = replace(reasoner.settings, **latents)
    model = str(reasoner.save_pretrained(tmp_path / "model"))
    oracle = Kept(backbone=model, **SHORT, num_branches=2, do_sample=True, intervention="oracle")
    make_trainer(tmp_path, callbacks=[JSONLinesWriter()]).predict(oracle, prompts(world, batch_size=batch_size))
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    wanted = targets(reasoner, world / "test.jsonl", world / "prompt.txt")
    rows = [pair for rollout in oracle.rollouts for pair in zip(rollout.latents, rollout.span_ids, strict=True)]
    assert len(rows) == 16
    per_frame = 1 if latents else 4  # of which the two latents of a span take the first
    fed = 0
    for row, (own, ids) in enumerate(rows):
        frames = wanted[row // 2].split(per_frame)
        spans = ids.tolist()
        for place, span in enumerate(spans):
            step = place - spans.index(span)
            if 0 <= span < len(frames) and step < per_frame:
                assert_same_but_rounding(own[place], frames[span][step])
                fed += 1
    assert fed >= 16 * min(2, per_frame)
    assert {record["own_latents"] > 0 for record in records} >= {bool(latents)}
    assert "counterfactual" not in records[0]


def test_a_record_without_the_future_that_is_fed_is_named(world: Path, tmp_path: Path, opening: str) -> None:
    settings: dict[str, Any] = {**SHORT, "backbone": opening}
    with pytest.raises(RecordError, match=r"test.jsonl, record 1 has no field 'counterfactual', and the model's inter"):
        predicted(tmp_path / "swap", world, LatentPredictor(**settings, intervention="swap"))
    lines = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()[:2]]
    for line in lines:
        line["video"] = str(world / line["video"])
    said = [{"role": "user", "content": "What next?"}, {"role": "assistant", "content": "It moves."}]
    lines[1] = {"messages": said}
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copy(world / "prompt.txt", tmp_path)
    with pytest.raises(RecordError, match=r"record 2 has no frames of its future \(reasoning_image\)"):
        predicted(tmp_path / "oracle", tmp_path, LatentPredictor(**settings, intervention="oracle"))
    oracle = LatentPredictor(**settings, intervention="oracle")
    make_trainer(tmp_path / "skip", callbacks=[JSONLinesWriter()]).predict(oracle, prompts(tmp_path, on_error="skip"))
    assert len((tmp_path / "skip" / "predictions.jsonl").read_text().splitlines()) == 1


def test_zeros_and_markers(world: Path, tmp_path: Path, opening: str) -> None:
    shared: dict[str, Any] = {**SHORT, "backbone": opening}
    zero = Kept(**shared, intervention="zero")
    predicted(tmp_path / "zero", world, zero)
    assert all(rollout.latent_mask.any() and not rollout.latents.any() for rollout in zero.rollouts)
    markers = Kept(**shared, intervention="markers", save_latents=True)
    records = predicted(tmp_path / "markers", world, markers)
    assert all(record["spans"][0] == 0 for record in records)
    assert all(record["response"].startswith("[imagined frame 1: 0 latents]") for record in records)
    tokens = markers.reasoner.tokens
    assert all(
        (rollout.responses[:, :2] == torch.tensor([tokens.start_id, tokens.end_id])).all()
        for rollout in markers.rollouts
    )
    assert LatentBank.load(tmp_path / "markers").latents.shape[:2] == (8, 0)
    with pytest.raises(ConfigError, match=r"model\.intervention differ"):
        predicted(tmp_path / "zero", world, Kept(**shared, intervention="none"))


def test_a_killed_prediction_keeps_its_latents(world: Path, tmp_path: Path, opening: str) -> None:
    settings: dict[str, Any] = {**SHORT, "backbone": opening, "save_latents": True}
    predicted(tmp_path / "whole", world, LatentPredictor(**settings))
    whole = LatentBank.load(tmp_path / "whole")
    run = tmp_path / "killed"

    class Killed(LatentPredictor):
        def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
            if "test.jsonl:7" in batch.sample_ids:
                raise KeyboardInterrupt
            return super().predict_step(batch, batch_idx)

    predicted(run, world, LatentPredictor(**settings), limit_predict_batches=1)  # ends, with the first three
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predicted(run, world, Killed(**settings))
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 6
    assert len(LatentBank.load(run / "latents.safetensors")) == 3
    (part,) = (run / LATENT_PARTS).iterdir()
    part.rename(part.with_name("1-00000000.safetensors"))  # it was on two ranks, and goes on with one
    predicted(run, world, LatentPredictor(**settings))
    again = LatentBank.load(run / "latents.safetensors")
    assert sorted(again.ids) == sorted(whole.ids)
    for name, latents, count in zip(whole.ids, whole.latents, whole.counts.tolist(), strict=True):
        place = again.ids.index(name)
        assert int(again.counts[place]) == count
        assert_same_but_rounding(again.latents[place, :count], latents[:count])
    assert not (run / LATENT_PARTS).exists()
    # killed after the last batch: nothing is left to decode, and the latents are put together all the same
    (run / LATENT_PARTS).mkdir()
    (run / "latents.safetensors").rename(run / LATENT_PARTS / "0-00000000.safetensors")
    predicted(run, world, LatentPredictor(**settings))
    assert len(LatentBank.load(run / "latents.safetensors")) == 8


def test_a_test_saves_its_latents_and_no_earlier_ones(world: Path, tmp_path: Path, opening: str) -> None:
    settings: dict[str, Any] = {**SHORT, "backbone": opening, "save_latents": True}
    for limit in (None, 2):
        data = prompts(world, test=str(world / "test.jsonl"))
        LatentBank.from_responses(["old"], [torch.ones(1, 3)]).save(tmp_path / "latents-rank3.safetensors")
        make_trainer(tmp_path, limit_test_batches=limit).test(LatentPredictor(**settings), data, verbose=False)
        assert len(LatentBank.load(tmp_path)) == (6 if limit else 8)
        assert [file.name for file in tmp_path.glob("latents*")] == ["latents.safetensors"]


# ---------------------------------------------------------------------- one queue for all batches


def texts_of(run: Path) -> list[tuple[str, str]]:
    lines = (run / "predictions.jsonl").read_text().splitlines()
    return [(line["id"], line["response"]) for line in map(json.loads, lines)]


SAMPLED: dict[str, Any] = {"num_branches": 2, "do_sample": True, "backbone": "tiny"}


@pytest.mark.usefixtures("mixed")
def test_predictions_do_not_depend_on_batches_and_slots(world: Path, tmp_path: Path) -> None:
    found = {}
    for batch_size, slots in ((1, 0), (3, 0), (8, 3), (2, 5)):
        run = tmp_path / f"{batch_size}-{slots}"
        sampling = SamplingSettings(max_new_tokens=40, seed=2, slots=slots)
        data = prompts(world, batch_size=batch_size)
        make_trainer(run, callbacks=[JSONLinesWriter()]).predict(LatentPredictor(**SAMPLED, sampling=sampling), data)
        found[batch_size, slots] = texts_of(run)
    assert len(set(map(len, dict(found[1, 0]).values()))) > 4
    assert all(texts == found[1, 0] for texts in found.values())


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response ends at every step with a probability of one in ten."""
    original = LatentReasoner.logits

    def ending(self: LatentReasoner, hidden: torch.Tensor) -> torch.Tensor:
        logits = original(self, hidden)
        logits[..., self.end_token_ids[0]] = logits.logsumexp(dim=-1) - 2.2
        return logits

    monkeypatch.setattr(LatentReasoner, "logits", ending)


class Steps:
    """Counts the decoding steps of the tiny model, and notes which prompts were asked for before each one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from futurel1.models.decoding.generation import Decoder

        self.admitted: list[int] = []
        original = Decoder._take_steps

        def counted(decoder: Any) -> None:
            self.admitted.append(decoder._admitted)
            original(decoder)

        monkeypatch.setattr(Decoder, "_take_steps", counted)


@pytest.mark.usefixtures("mixed")
def test_slots_refill_across_batches(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, counts = Steps(monkeypatch), []
    for name in ("queue", "batches"):
        data = prompts(world, batch_size=2)
        if name == "batches":  # a loader that cannot be read ahead
            original = data.predict_dataloader
            monkeypatch.setattr(data, "predict_dataloader", lambda original=original: original().loader)
        module = LatentPredictor(**SAMPLED, sampling=SamplingSettings(max_new_tokens=40, seed=2))
        make_trainer(tmp_path / name, callbacks=[JSONLinesWriter()]).predict(module, data)
        counts.append(len(steps.admitted))
        steps.admitted.clear()
    assert texts_of(tmp_path / "queue") == texts_of(tmp_path / "batches")
    assert counts[0] < 0.9 * counts[1]


def test_a_limit_of_batches_is_not_read_past(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    module = LatentPredictor(**SAMPLED, sampling=SamplingSettings(max_new_tokens=12, slots=8))
    trainer = make_trainer(tmp_path, callbacks=[JSONLinesWriter()], limit_predict_batches=2)
    trainer.predict(module, prompts(world, batch_size=2))
    assert [name for name, _ in texts_of(tmp_path)] == [f"test.jsonl:{number}" for number in range(1, 5)]
    assert set(steps.admitted) == {4}


def test_a_damaged_record_costs_no_earlier_answer(world: Path, tmp_path: Path) -> None:
    lines = (world / "test.jsonl").read_text().splitlines()[:6]
    lines = [line.replace('"video": "', f'"video": "{world}/') for line in lines]
    lines[4] = json.dumps({**json.loads(lines[4]), "video": "nowhere.mp4"})
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    module = LatentPredictor(**SAMPLED, sampling=SamplingSettings(max_new_tokens=12, slots=8))
    with pytest.raises(FutureL1Error, match=r"test\.jsonl.*5"):
        make_trainer(tmp_path, callbacks=[JSONLinesWriter()]).predict(
            module, prompts(world, predict=str(tmp_path / "test.jsonl"), batch_size=2)
        )
    assert [name for name, _ in texts_of(tmp_path)] == [f"test.jsonl:{number}" for number in range(1, 5)]


def test_a_number_that_is_not_finite_names_the_record(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LatentReasoner.logits
    calls: list[int] = []

    def broken(self: LatentReasoner, hidden: torch.Tensor) -> torch.Tensor:
        logits = original(self, hidden)
        calls.append(len(hidden))
        if len(calls) == 5:
            logits[-1, 0] = float("nan")
        return logits

    monkeypatch.setattr(LatentReasoner, "logits", broken)
    module = LatentPredictor(**SAMPLED, sampling=SamplingSettings(max_new_tokens=12))
    with pytest.raises(DecodingError, match=r"the logits of branch 1 of test\.jsonl:2 at step 4 is not finite"):
        make_trainer(tmp_path).predict(module, prompts(world, batch_size=2))


@pytest.mark.slow
def test_commands_of_the_document_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: Path, opening: str
) -> None:
    """As they stand, only shorter: another model and world under the names that the document uses."""
    root = Path(__file__).parents[2]
    (block,) = re.findall(r"```bash\n(.*?)```", (root / "docs" / "evaluation.md").read_text(), re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "world").symlink_to(world)
    (tmp_path / "runs" / "first").symlink_to(opening)
    (tmp_path / "configs").symlink_to(root / "configs")
    monkeypatch.chdir(tmp_path)
    found = {}
    for line in block.splitlines():
        command, *words = shlex.split(line)
        assert command == "futurel1"
        main([*words, "--model.init_args.sampling.max_new_tokens", "12", "--data.init_args.num_workers", "0"])
        run = tmp_path / "runs" / words[-1]
        found[run.name] = [json.loads(text) for text in (run / "predictions.jsonl").read_text().splitlines()]
    assert set(found) == {"base", "zero", "mean", "noise", "other", "markers", "oracle"}
    assert intervention_effect(found["base"], found["base"])["changed_text"] == 0
    assert intervention_effect(found["base"], found["markers"])["n"] == 8
    assert {name for name, records in found.items() if any(sum(record["spans"]) for record in records)} == set(
        found
    ) - {"markers"}
    assert len(LatentBank.load(tmp_path / "runs" / "base")) == 8
