"""The page from result files, whole and in part, and what is run next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fabricated import fabricate
from PIL import Image

from experiments.miniature import work
from experiments.miniature.records import HINT, MISMATCHED, main, read_lines, without_hints
from experiments.miniature.report import MARKER, compared, curation_table, current_results, write_report
from experiments.miniature.run import Bench, chosen, states, write_json
from experiments.miniature.stages import build_stages, load_plan
from experiments.miniature.work import Places, fit_metrics, thinned

ROOT = Path(__file__).parents[2]
PLAN = load_plan(ROOT / "experiments" / "miniature" / "plan.yaml")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(ROOT)
    return Bench(build_stages(PLAN), Places.under(tmp_path))


def row(page: str, label: str) -> list[str]:
    """Cells of the first row of a table that begins with a label."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_whole_page(bench: Bench) -> None:
    fabricate(bench)
    write_report(bench, PLAN)
    page = bench.places.document.read_text()
    labels = [*PLAN["rows"].values()]
    places = [page.index(f"| {label} |") for label in labels]
    assert places == sorted(places)
    for label in labels:
        cells = row(page, label)
        assert cells[1] == ("1" if label == "no SFT" else "3")
        assert "-" not in cells[2:7]
        assert ("±" in cells[6]) == (label != "no SFT")
    assert row(page, "no SFT")[7:10] == ["-", "-", "-"]
    assert row(page, "no SFT")[10] == "25.0"  # 32 of 128 without an answer
    assert row(page, "text-only SFT")[8] == "<0.001"
    assert row(page, "2")[1] == "3"
    assert row(page, "markers")[1] == "3"
    assert row(page, "Future-L1-RL")[5] == "85.4"
    assert row(page, "latent SFT: true frames hold it")[1:3] == ["3", "90.0 ± 0.0"]
    assert row(page, "latent SFT: frame imagined")[3] == "80.0 ± 0.0"
    assert row(page, "LA-DAPO (both rewards): imagined frames hold it")[6] == "50.0 ± 0.0"
    assert row(page, "latent SFT: answered")[6] == row(page, "latent SFT")[6]
    for name in ("accuracy", "rewards", "spans", "imagined"):
        assert f"](miniature/{name}.png)" in page
        with Image.open(bench.places.document.parent / "miniature" / f"{name}.png") as picture:
            assert picture.width > 800
            assert picture.convert("L").getextrema()[0] < 128


def test_what_was_curated_is_told_by_split(bench: Bench) -> None:
    fabricate(bench, ["probe", "curate"])
    table = curation_table(current_results(bench)).splitlines()
    assert table[2] == "| 1 hop | 100 | 25.0 | - | 25 |"
    assert table[-2] == "| another's clip | 100 | 20.0 | 10.0 | 3 |"
    assert table[-1] == "| all | 500 | 25.0 | 75.0 | 103 |"


def test_mean_and_difference_are_those_of_the_results(bench: Bench) -> None:
    fabricate(bench)
    for seed, correct in enumerate(("1" * 64 + "0" * 64, "1" * 64 + "0" * 64, "1" * 80 + "0" * 48)):
        for run, marks in (("sft-latent", correct), ("sft-text", "0" * 128)):
            file = bench.places.result(f"test-{run}-s{seed}")
            share = marks.count("1") / 128
            result = work.json.loads(file.read_text())
            result["metrics"] |= {"correct": marks, "accuracy": dict.fromkeys((*work.SPLITS, "all"), share)}
            write_json(file, result)
    write_report(bench, PLAN)
    cells = row(bench.places.document.read_text(), "latent SFT")
    assert cells[6] == "54.2 ± 17.9"  # 4.303 * 12.5 / sqrt(3) / sqrt(3)
    assert cells[7].startswith("+54.2 (+45.")
    assert cells[9] == "± 17.9"  # the other one is never right


def test_differences_are_those_of_seeds_that_both_runs_have(bench: Bench) -> None:
    fabricate(bench, ["test-backbone", *(f"test-sft-latent-s{seed}" for seed in PLAN["seeds"]), "test-sft-lambda1-s0"])
    marks = ["1" * 128, "0" * 128, "0" * 128]
    for seed, correct in enumerate(marks):
        file = bench.places.result(f"test-sft-latent-s{seed}")
        result = json.loads(file.read_text())
        share = {"accuracy": dict.fromkeys((*work.SPLITS, "all"), float(correct[0]))}
        write_json(file, {**result, "metrics": {**result["metrics"], "correct": correct, **share}})
    results = current_results(bench)
    found, over_seeds = compared(results, PLAN, "sft-lambda1", "sft-latent") or pytest.fail("nothing to compare")
    level = results["test-sft-lambda1-s0"]["metrics"]["accuracy"]["all"]
    assert found.value == pytest.approx(level - 1)  # the first seed alone
    assert over_seeds.half is None
    found, over_seeds = compared(results, PLAN, "sft-latent", "backbone") or pytest.fail("nothing to compare")
    level = results["test-backbone"]["metrics"]["accuracy"]["all"]
    assert (found.value, over_seeds.value, over_seeds.seeds) == (*[pytest.approx(1 / 3 - level)] * 2, 3)
    assert compared(results, PLAN, "sft-text", "sft-latent") is None


def test_page_in_part(bench: Bench) -> None:
    fabricate(bench, ["world", "test-backbone", "test-sft-latent-s1"])
    write_report(bench, PLAN)
    page = bench.places.document.read_text()
    assert row(page, "latent SFT")[1] == "1"
    assert set(row(page, "latent SFT + DAPO")[2:]) == {"-"}
    assert row(page, "latent SFT")[7] == "-"  # the row above is not there
    assert "rewards.png" not in page
    assert "accuracy.png" in page
    assert f"3 of {len(bench.stages)} stages" in page


def test_page_without_results(bench: Bench) -> None:
    write_report(bench, PLAN)
    page = bench.places.document.read_text()
    assert set(row(page, "no SFT")[2:]) == {"-"}
    assert ".png" not in page


def test_hand_written_text_is_kept(bench: Bench) -> None:
    write_report(bench, PLAN)
    own = "\n\n## What came of it\n\nNot what was expected.\n"
    text = bench.places.document.read_text()
    bench.places.document.write_text(text.partition(MARKER)[0] + MARKER + own)
    fabricate(bench, ["test-backbone"])
    write_report(bench, PLAN)
    page = bench.places.document.read_text()
    assert page.endswith(MARKER + own)
    assert page.count(MARKER) == 1
    assert row(page, "no SFT")[2] != "-"


def test_results_of_other_settings_are_left_out(bench: Bench) -> None:
    fabricate(bench, ["test-backbone", "test-sft-latent-s0"])
    file = bench.places.result("test-sft-latent-s0")
    write_json(file, {**work.json.loads(file.read_text()), "digest": "of another day"})
    write_report(bench, PLAN)
    page = bench.places.document.read_text()
    assert row(page, "latent SFT")[1] == "0"
    assert "Left out, as made with other settings: test-sft-latent-s0." in page
    assert states(bench)["test-sft-latent-s0"] == "stale"
    assert states(bench)["test-backbone"] == "done"


def test_only_what_is_missing_is_run(bench: Bench) -> None:
    assert chosen(bench, []) == list(bench.stages)
    fabricate(bench)
    assert chosen(bench, []) == []
    assert chosen(bench, [], again=True) == list(bench.stages)
    bench.places.result("test-sft-text-s0").unlink()
    # Results came with the repository, what was made did not: it is made anew where something starts from it.
    needed = ["world", "split", "probe", "curate", "records-text", "sft-text-s0", "test-sft-text-s0"]
    assert chosen(bench, []) == needed
    for name in needed[:-1]:
        note = {"digest": bench.digests[name], "finished": True}
        write_json(bench.places.runs / name / "stage.json", note)
    assert chosen(bench, []) == ["test-sft-text-s0"]
    assert chosen(bench, ["test-rl-*"]) == []
    with pytest.raises(SystemExit, match="no such stage"):
        chosen(bench, ["nothing"])


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
    # Every seed draws apart from the choice of wrong clips: of 10 in 40, all 10 in one draw of 20 have p = 0.0002.
    assert max(wrong) < 10
    assert 4 < sum(wrong) / 20 < 6
    main(["draw", "--records", str(tmp_path / "split" / "candidates.jsonl"), "--count", "30", "--seed", "1",
          "--clean", "true", "--out", str(tmp_path / "clean")])  # fmt: skip
    assert not any(MISMATCHED in record for record in read_lines(tmp_path / "clean" / "records.jsonl"))
    with pytest.raises(SystemExit, match="share from 0 to 1"):
        main(["split", "--records", str(tmp_path / "train.jsonl"), "--validation", "10", "--mismatch", "1.5",
              "--out", str(tmp_path / "split")])  # fmt: skip


def test_logged_values_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    lines = [
        "step,train/loss,val/ce,val/accuracy,reward/correct",
        "0,3.0,,,0.1",
        "1,1.0,2.0,0.5,0.3",
        "2,2.0,3.0,0.4,nan",
    ]
    file.write_text("\n".join(lines) + "\n")
    found = fit_metrics(file, with_curve=True)
    assert found["steps"] == 3
    assert found["last"] == {"train/loss": 2.0, "val/ce": 3.0, "val/accuracy": 0.4, "reward/correct": 0.3}
    assert found["best"] == {"train/loss": 1.0, "val/ce": 2.0, "val/accuracy": 0.5, "reward/correct": 0.3}
    assert found["curve"] == [[0, 0.1], [1, 0.3]]


def test_curves_keep_their_ends() -> None:
    points = thinned(list(range(500)), 60)
    assert len(points) == 60
    assert (points[0], points[-1]) == (0, 499)
    assert points == sorted(set(points))
    assert thinned([1, 2, 3], 60) == [1, 2, 3]
