"""Short runs of reinforcement learning that reward R_ctr and R_div in other ways, and a table of what they moved.

    python -m experiments.latent_rewards --jobs 2   # everything that has no result yet, two runs at once; a table
    python -m experiments.latent_rewards --table    # only the table, from experiments/latent_rewards/results.json

Runs from the root of the repository, with the engine of the miniature, into runs/latent-rewards. World, records and
supervised run are made there, unless their folders and result files are copied from the miniature's.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.proof.formatting import markdown
from experiments.proof.records import read_lines
from experiments.proof.results import Bench, Places, read_results, write_json
from experiments.proof.run import run_stages
from experiments.proof.stages import build_stages, load_plan, merged, plan_file
from futurel1.rewards import OutcomeContrastiveReward, RewardInputs
from futurel1.rewards.base import RewardVariant

FOLDER = Path("experiments/latent_rewards")
ROOT = Path("runs/latent-rewards")
ENDS = 5
"""Rollout batches that the first and the last numbers are means over."""
MEANS = (
    "reward/correct", "reward/contrastive", "reward/diversity", "reward/between", "reward/format",
    "rollout/latent_cosine", "rollout/spans", "rollout/response_length",
    "group_std/total", "group_std/accuracy", "group_std/contrastive", "group_std/diversity",
    "advantage_share/accuracy", "advantage_share/contrastive", "advantage_share/diversity",
    "accuracy_r2/advantage", "accuracy_r2/contrastive", "accuracy_r2/diversity", "train/latent_ratio_max",
)  # fmt: skip
SPAN = "[imagined frame "


def main(args: Sequence[str] | None = None) -> None:
    """Run what is left, then print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.latent_rewards", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="RUN", help="runs of plan.yaml; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, which share the cores (default: 1)")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args(args)
    changes = yaml.safe_load((FOLDER / "plan.yaml").read_text(encoding="utf-8"))
    file = FOLDER / "results.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not options.table:
        found |= results_of(options.only or list(changes["rows"]), changes, options.jobs)
        write_json(file, {run: found[run] for run in changes["rows"] if run in found})
    print(table(found, changes["rows"]))


def plan_of(rows: Sequence[str], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The miniature's plan with changes, and with the stages of these rows only."""
    plan = merged(load_plan(plan_file("miniature")), changes)
    return {**plan, "rows": dict.fromkeys(rows, ""), "ablations": {}, "controls": [], "diagnose": {}, "more_seeds": {}}


def results_of(runs: Sequence[str], changes: Mapping[str, Any], jobs: int) -> dict[str, Any]:
    """Make runs, unless they are there, and summarize them."""
    plan = plan_of([f"rl-{run}" for run in runs], changes)
    bench = Bench(build_stages(plan), Places.under(ROOT))
    stages = {run: f"rl-{run}-s{plan['seeds'][0]}" for run in runs}
    run_stages(bench, list(stages.values()), jobs=jobs)
    results, found = read_results(bench.places), {}
    for run, stage in stages.items():
        kept = {key: results[stage][key] for key in ("digest", "commit", "dirty", "machine", "started", "seconds")}
        options = changes["rl"]["runs"][run].get("set", {})
        metrics = summary(bench.places.runs / stage, options)
        found[run] = {"set": {**changes["rl"]["set"], **options}, **kept, "metrics": metrics}
    return found


def summary(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of the first and the last rollout batches of a run, and its validation; `options`: its settings."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(stream)]
    steps = [row for row in rows if "reward/correct" in row]
    batches = [row for row, before in zip(steps, [{}, *steps], strict=False) if _changed(row, before)]
    rollouts = read_lines(folder / "rollouts.jsonl")
    numbers = {name: _ends([row[name] for row in batches if name in row]) for name in MEANS}
    for name, values in _of_rollouts(rollouts, _variant(options)).items():
        numbers[name] = _ends(values)
    validated = {name: value for row in rows for name, value in row.items() if name.startswith("val/")}
    return {"batches": len(batches), **numbers, **{name: _short(value) for name, value in validated.items()}}


def _changed(row: Mapping[str, float], before: Mapping[str, float]) -> bool:
    return row["rollout/seconds"] != before.get("rollout/seconds")


def _variant(options: Mapping[str, Any]) -> RewardVariant:
    rewards = options.get("model.init_args.reward.init_args.rewards", {})
    variant: RewardVariant = rewards.get("contrastive", {}).get("init_args", {}).get("variant", "paper")
    return variant


def _of_rollouts(rollouts: Sequence[Mapping[str, Any]], variant: RewardVariant) -> dict[str, list[float]]:
    """Means per rollout batch: R_ctr if all latents were the same, R_div of rollouts with two spans or more."""
    same: dict[int, list[float]] = {}
    spread: dict[int, list[float]] = {}
    for rollout, value in zip(rollouts, contrastive_of_equal_latents(rollouts, variant), strict=True):
        number = rollout["rollout_batch"]
        same.setdefault(number, []).append(value)
        if rollout["response"].count(SPAN) > 1:
            spread.setdefault(number, []).append(rollout["diversity"])
    return {
        "contrastive_of_equal_latents": [sum(values) / len(values) for values in same.values()],
        "diversity_of_several_spans": [sum(values) / len(values) for values in spread.values()],
    }


def contrastive_of_equal_latents(
    rollouts: Sequence[Mapping[str, Any]], variant: RewardVariant = "paper"
) -> list[float]:
    """R_ctr of each rollout if all latents pointed the same way: it then depends on the number of wrong ones alone."""
    number = len(rollouts)
    nothing = [""] * number
    imagined = torch.tensor([SPAN in rollout["response"] for rollout in rollouts])
    inputs = RewardInputs(
        nothing, nothing, nothing,
        group_ids=torch.tensor([rollout["prompt_index"] for rollout in rollouts]),
        response_lengths=torch.ones(number, dtype=torch.int64),
        latents=torch.ones(number, 1, 1),
        latent_mask=imagined[:, None],
        correct=torch.tensor([rollout["accuracy"] for rollout in rollouts]),
    )  # fmt: skip
    values: list[float] = OutcomeContrastiveReward(variant=variant)(inputs).tolist()
    return values


def _ends(values: Sequence[float]) -> list[float | None]:
    """Mean of the first and of the last values that are numbers."""
    ends = ([value for value in part if math.isfinite(value)] for part in (values[:ENDS], values[-ENDS:]))
    return [_short(sum(part) / len(part)) if part else None for part in ends]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def table(found: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Markdown: what every run moved, from its first to its last rollout batches."""
    columns = {
        "right": "reward/correct", "R_ctr": "reward/contrastive", "of equal latents": "contrastive_of_equal_latents",
        "R_div": "reward/diversity", "of 2 spans or more": "diversity_of_several_spans", "spans": "rollout/spans",
        "latent cosine": "rollout/latent_cosine", "R² of R_ctr": "accuracy_r2/contrastive",
        "validation, right": "val/accuracy",
    }  # fmt: skip
    rows = [
        [label, *(_cell(found[run]["metrics"][name]) for name in columns.values())]
        for run, label in labels.items()
        if run in found
    ]
    return markdown(["rewarded", *columns], rows)


def _cell(ends: Sequence[float | None] | float) -> str:
    if not isinstance(ends, Sequence):
        return f"{ends:.3f}"
    first, last = ("-" if value is None else f"{value:.3f}" for value in ends)
    return f"{first} to {last}"


if __name__ == "__main__":
    main()
