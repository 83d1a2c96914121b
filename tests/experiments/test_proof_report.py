"""The page from result files, whole and in part."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fabricated import MINIATURE, ROOT, fabricate
from PIL import Image

from experiments.proof.formatting import over
from experiments.proof.records import SPLITS
from experiments.proof.report import (
    MARKER,
    claim_table,
    compared,
    curation_table,
    diagnosis_section,
    write_report,
)
from experiments.proof.results import Bench, Places, current_results, write_json
from experiments.proof.run import states
from experiments.proof.stages import build_stages, load_plan

PLAN = load_plan(MINIATURE)


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
    page = bench.places.page.read_text()
    labels = [*PLAN["rows"].values()]
    places = [page.index(f"| {label} |") for label in labels]
    assert places == sorted(places)
    seeds = {"no SFT": "1", "latent SFT + GRPO": "5", "latent SFT + DAPO": "5"}
    for label in labels:
        cells = row(page, label)
        assert cells[1] == seeds.get(label, "3")
        assert "-" not in cells[2:7]
        assert ("±" in cells[6]) == (label != "no SFT")
    assert row(page, "no SFT")[7:9] == ["-", "-"]
    assert row(page, "no SFT")[9] == "25.0"  # 32 of 128 without an answer
    assert re.fullmatch(r"<0\.001|[01]\.\d{3}", row(page, "text-only SFT")[8])
    assert row(page, "2")[1] == "3"
    assert row(page, "markers")[1] == "3"
    assert row(page, "Future-L1-RL")[5] == "85.4"
    assert row(page, "latent SFT: true frames hold it")[1:3] == ["3", "90.0 ± 0.0"]
    assert row(page, "latent SFT: frame imagined")[3] == "80.0 ± 0.0"
    assert row(page, "LA-DAPO (both rewards): imagined frames hold it")[6] == "50.0 ± 0.0"
    assert row(page, "latent SFT: answered")[6] == row(page, "latent SFT")[6]
    for name in ("accuracy", "rewards", "spans", "imagined"):
        assert f"](page/{name}.png)" in page
        with Image.open(bench.places.figures / f"{name}.png") as picture:
            assert picture.width > 800
            assert picture.convert("L").getextrema()[0] < 128


def test_a_split_without_questions_has_no_column(bench: Bench) -> None:
    fabricate(bench)
    for file in bench.places.results.glob("test-*.json"):
        result = json.loads(file.read_text())
        result["metrics"]["accuracy"]["hop5"] = result["metrics"]["spans"]["hop5"] = None
        write_json(file, result)
    write_report(bench, {**PLAN, "paper": False})
    page = bench.places.page.read_text()
    assert "| 3 hops | average |" in page
    assert "| interpolation |" not in page.partition("## Curation")[0] + page.partition("## Spans")[2]
    assert len(row(page, "text-only SFT")) == 11


def test_diagnoses_are_told_over_seeds(bench: Bench) -> None:
    names = [f"diagnose-sft-latent-s{seed}" for seed in PLAN["seeds"]]
    fabricate(bench, names)
    found = [result["metrics"] for result in current_results(bench).values()]
    page = "\n".join(diagnosis_section(current_results(bench), PLAN))
    shares = [100 * one["effects"]["swap"]["followed"] / 40 for one in found]
    cells = row(page, "other future")
    assert cells[1:3] == ["3", over([one["effects"]["swap"] for one in found], lambda one: 100 * one["right"] / 40)]
    assert cells[4].startswith(f"{sum(shares) / 3:.1f} ±")
    more = sum(shares) / 3 - sum(100 * one["effects"]["none"]["followed"] / 40 for one in found) / 3
    assert cells[5].startswith(f"{more:+.1f} (+")
    assert "Fed the other future, not zeros, the model gives that future's answer more often: +" in page
    assert row(page, "reversed")[1:3] == ["3", "80 ± 0"]
    pairs = [(one["changes"]["moved"]["first"], one["changes"]["moved"]["second"]) for one in found]
    own, other = (np.array([words[side].split()[1:] for words in pairs], dtype=float) for side in (0, 1))
    assert row(page, "moved")[5].startswith(f"{100 * (own - other).mean():+.1f} (")  # the first question has no span
    assert row(page, "latents")[1:5] == ["3", "160 ± 0", "0.70 ± 0.00", "0.00 ± 0.00"]
    assert page.count("No seed so far.") == 2


def test_what_was_curated_is_told_by_split(bench: Bench) -> None:
    fabricate(bench, ["probe", "curate"])
    table = curation_table(current_results(bench)).splitlines()
    assert table[2] == "| 1 hop | 100 | 25.0 | - | 25 |"
    assert table[-2] == "| another's clip | 100 | 20.0 | 10.0 | 3 |"
    assert table[-1] == "| all | 500 | 25.0 | 75.0 | 103 |"


def test_mean_and_difference_are_those_of_the_results(bench: Bench) -> None:
    fabricate(bench)
    for seed, correct in enumerate(("1" * 64 + "0" * 64, "1" * 64 + "0" * 64, "1" * 80 + "0" * 48)):
        for run, marks in (("sft-latent", correct), ("sft-constant", "0" * 128)):
            file = bench.places.result(f"test-{run}-s{seed}")
            share = marks.count("1") / 128
            result = json.loads(file.read_text())
            result["metrics"] |= {"correct": marks, "accuracy": dict.fromkeys((*SPLITS, "all"), share)}
            write_json(file, result)
    write_report(bench, PLAN)
    cells = row(bench.places.page.read_text(), "latent SFT")
    assert cells[6] == "54.2 ± 17.9"  # 4.303 * 12.5 / sqrt(3) / sqrt(3)
    # The other one is never right. Seeds alone (two degrees of freedom) give ± 17.9, questions alone ± 8.2.
    assert cells[7] == "+54.2 (+40.6 to +67.7)"


def test_differences_are_those_of_seeds_that_both_runs_have(bench: Bench) -> None:
    fabricate(bench, ["test-backbone", *(f"test-sft-latent-s{seed}" for seed in PLAN["seeds"]), "test-sft-lambda1-s0"])
    marks = ["1" * 128, "0" * 128, "0" * 128]
    for seed, correct in enumerate(marks):
        file = bench.places.result(f"test-sft-latent-s{seed}")
        result = json.loads(file.read_text())
        share = {"accuracy": dict.fromkeys((*SPLITS, "all"), float(correct[0]))}
        write_json(file, {**result, "metrics": {**result["metrics"], "correct": correct, **share}})
    results = current_results(bench)
    found = compared(results, PLAN, "sft-lambda1", "sft-latent") or pytest.fail("nothing to compare")
    level = results["test-sft-lambda1-s0"]["metrics"]["accuracy"]["all"]
    assert found.value == pytest.approx(level - 1)  # the first seed alone
    found = compared(results, PLAN, "sft-latent", "backbone") or pytest.fail("nothing to compare")
    level = results["test-backbone"]["metrics"]["accuracy"]["all"]
    assert found.value == pytest.approx(1 / 3 - level)
    assert compared(results, PLAN, "sft-text", "sft-latent") is None


def test_added_seeds_are_told_and_counted(bench: Bench) -> None:
    fabricate(bench)
    write_report(bench, PLAN)
    page = bench.places.page.read_text()
    assert "; seeds 0, 1, 2; also 3, 4 for latent SFT + GRPO, latent SFT + DAPO. World" in page
    assert [row(page, label)[1] for label in ("latent SFT + GRPO", "latent SFT + DAPO", "latent SFT")] == list("553")
    results = current_results(bench)
    with_all = compared(results, PLAN, "rl-dapo", "rl-grpo") or pytest.fail("nothing to compare")
    first = compared(results, {**PLAN, "more_seeds": {}}, "rl-dapo", "rl-grpo") or pytest.fail("nothing to compare")
    assert with_all != first


def test_claims_are_corrected_for_their_number(bench: Bench) -> None:
    fabricate(bench)
    lines = claim_table(current_results(bench), PLAN).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells) == len(PLAN["comparisons"])
    own, corrected = ([0.0 if row[at] == "<0.001" else float(row[at]) for row in cells] for at in (2, 3))
    assert all(after >= before for before, after in zip(own, corrected, strict=True))
    assert sum(after > before for before, after in zip(own, corrected, strict=True)) > 1


def test_page_in_part(bench: Bench) -> None:
    fabricate(bench, ["world", "test-backbone", "test-sft-latent-s1"])
    write_report(bench, PLAN)
    page = bench.places.page.read_text()
    assert row(page, "latent SFT")[1] == "1"
    assert set(row(page, "latent SFT + DAPO")[2:]) == {"-"}
    assert row(page, "latent SFT")[7] == "-"  # the row above is not there
    assert "rewards.png" not in page
    assert "accuracy.png" in page
    assert f"3 of {len(bench.stages)} stages" in page


def test_page_without_results(bench: Bench) -> None:
    write_report(bench, PLAN)
    page = bench.places.page.read_text()
    assert set(row(page, "no SFT")[2:]) == {"-"}
    assert ".png" not in page


def test_hand_written_text_is_kept(bench: Bench) -> None:
    write_report(bench, PLAN)
    own = "\n\n## What came of it\n\nNot what was expected.\n"
    text = bench.places.page.read_text()
    bench.places.page.write_text(text.partition(MARKER)[0] + MARKER + own)
    fabricate(bench, ["test-backbone"])
    write_report(bench, PLAN)
    page = bench.places.page.read_text()
    assert page.endswith(MARKER + own)
    assert page.count(MARKER) == 1
    assert row(page, "no SFT")[2] != "-"


def test_results_of_other_settings_are_left_out(bench: Bench) -> None:
    fabricate(bench, ["test-backbone", "test-sft-latent-s0"])
    file = bench.places.result("test-sft-latent-s0")
    write_json(file, {**json.loads(file.read_text()), "digest": "of another day"})
    write_report(bench, PLAN)
    page = bench.places.page.read_text()
    assert row(page, "latent SFT")[1] == "0"
    assert "Left out, as made with other settings: test-sft-latent-s0." in page
    assert states(bench)["test-sft-latent-s0"] == "stale"
    assert states(bench)["test-backbone"] == "done"
