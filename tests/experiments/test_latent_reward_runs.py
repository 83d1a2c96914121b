"""What the runs that reward the latents are made from, and how they are summed up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from experiments.latent_rewards import free_latents
from experiments.latent_rewards.__main__ import contrastive_of_equal_latents, plan_of, summary
from experiments.latent_rewards.between import spread
from experiments.proof.results import write_json
from experiments.proof.stages import build_stages, digests, load_plan, plan_file
from futurel1.rewards import RewardInputs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "latent_rewards"
CHANGES = yaml.safe_load((FOLDER / "plan.yaml").read_text())


def rollout(prompt, accuracy, *, batch=0, spans=1, diversity=0.0):
    response = "".join(f"[imagined frame {number}: 1 latent]" for number in range(1, spans + 1))
    return {
        "rollout_batch": batch, "prompt_index": prompt, "accuracy": accuracy, "response": response,
        "diversity": diversity,
    }  # fmt: skip


def test_every_run_starts_from_the_miniatures_supervised_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = build_stages(plan_of([f"rl-{run}" for run in CHANGES["rows"]], CHANGES))
    assert {name for name in stages if name.startswith("rl-")} == {f"rl-{run}-s0" for run in CHANGES["rows"]}
    of_the_miniature = digests(build_stages({**load_plan(plan_file("miniature")), "seeds": [0]}))
    assert digests(stages)["sft-latent-s0"] == of_the_miniature["sft-latent-s0"]


def test_equal_latents_give_wrong_rollouts_more():
    """1 / (1 + other wrong rollouts): of two wrong ones each has one other, a right one has two."""
    mixed = [rollout(3, 1.0), rollout(3, 1.0), rollout(3, 0.0), rollout(3, 0.0)]
    assert contrastive_of_equal_latents(mixed) == pytest.approx([1 / 3, 1 / 3, 1 / 2, 1 / 2])
    assert contrastive_of_equal_latents(mixed, "released") == pytest.approx([1 / 3] * 4)
    alone = [rollout(4, 1.0), rollout(4, 0.0), rollout(4, 0.0, spans=0)]
    assert contrastive_of_equal_latents(mixed + alone)[4:] == pytest.approx([0, 1, 0])


def test_ends_are_means_over_rollout_batches_not_updates(tmp_path):
    names = ["reward/correct", "reward/contrastive", "rollout/seconds", "val/accuracy", "accuracy_r2/diversity"]
    lines = [",".join(names)]
    for number in range(7):  # two updates each, and a validation behind the last
        lines += [f"{number},0.5,{10 + number},,nan"] * 2
    lines.append(",,,0.25,")
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    rows = [rollout(10 * n + p, float(p == 0), batch=n, spans=1 + p, diversity=-n) for n in range(7) for p in (0, 1)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = summary(tmp_path, {})
    assert found["batches"] == 7
    assert found["reward/correct"] == [2, 4]  # of 0 to 4, and of 2 to 6
    assert found["diversity_of_several_spans"] == [-2, -4]
    assert found["accuracy_r2/diversity"] == [None, None]
    assert found["val/accuracy"] == 0.25
    write_json(tmp_path / "found.json", found)  # nothing in it that JSON cannot hold
    assert "NaN" not in (tmp_path / "found.json").read_text()


def test_of_free_latents_each_reward_moves_what_it_compares(monkeypatch):
    """R_div alone rises. R_ctr alone makes answers wrong, because with latents alike wrong rollouts have more of it."""
    monkeypatch.setattr(free_latents, "LEARNING_RATE", 3e-2)
    monkeypatch.setattr(free_latents, "PROMPTS", 8)
    monkeypatch.setattr(free_latents, "ROLLOUTS", 8 * free_latents.GROUP)
    monkeypatch.setattr(free_latents, "ENDS", 2)

    def ends(**given):
        rows = free_latents.train(free_latents.Setting("", **given), updates=40)
        assert len(rows) == 4
        return rows[0], rows[-1]

    first, last = ends(weights=free_latents.alone("diversity"))
    assert last["reward/diversity"] > first["reward/diversity"] + 0.2
    assert first["advantage_share/diversity"] == pytest.approx(1)
    first, last = ends(weights=free_latents.alone("contrastive"))
    assert last["reward/accuracy"] < first["reward/accuracy"] - 0.1
    assert first["accuracy_r2/contrastive"] > 0.99
    first, last = ends(weights=free_latents.PAPER)
    assert last["reward/accuracy"] > first["reward/accuracy"] + 0.1
    assert first["accuracy_r2/advantage"] > 0.99
    first, last = ends(weights=free_latents.EQUAL, decoupled=True)
    assert last["reward/diversity"] > first["reward/diversity"] + 0.2  # R_ctr takes accuracy away, R_div is left
    assert first["advantage_share/diversity"] > 0.9
    assert last["reward/accuracy"] < first["reward/accuracy"] + 0.1


def test_spread_compares_the_responses_of_a_group():
    east, north, none = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]
    latents = torch.tensor([east, east, north, north, [-1.0, 0.0], none])[:, None]
    inputs = RewardInputs(
        [""] * 6, [""] * 6, [""] * 6,
        group_ids=torch.tensor([4, 9, 4, 9, 4, 9]),
        response_lengths=torch.ones(6, dtype=torch.int64),
        latents=latents,
        latent_mask=torch.tensor([True] * 5 + [False])[:, None],
    )  # fmt: skip
    # Group 4: east, north, west; group 9: east, north and a response without latents.
    assert spread(inputs).tolist() == pytest.approx([0.75, 0.5, 0.5, 0.5, 0.75, 0])
