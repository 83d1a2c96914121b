"""The graph of stages: complete, in order, and with digests that follow every setting."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from fabricated import MINIATURE, ROOT

from experiments.proof import stages as module
from experiments.proof.stages import Stage, build_stages, digests, load_plan, stages_testing, with_needs


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def plan() -> dict[str, Any]:
    return load_plan(MINIATURE)


def test_stages_stand_after_what_they_need(plan: dict[str, Any]) -> None:
    seen: set[str] = set()
    for name, stage in build_stages(plan).items():
        assert name == stage.name
        assert set(stage.needs) <= seen
        seen.add(name)


def test_every_row_has_its_stages(plan: dict[str, Any]) -> None:
    stages = build_stages(plan)
    shown = [*plan["rows"], *(run for table in plan["ablations"].values() for run in table)]
    assert len(plan["rows"]) == 13
    for run in shown:
        tests = stages_testing(run, plan)
        assert set(tests) <= stages.keys()
        assert len(tests) == {"backbone": 1, "rl-grpo": 5, "rl-dapo": 5}.get(run, len(plan["seeds"]))
    for run in plan["controls"]:
        for seed in plan["seeds"]:
            assert {f"controls-{run}-s{seed}", f"retrieval-{run}-s{seed}"} <= stages.keys()
    assert all(first in shown and second in shown for first, second, *_ in plan["comparisons"])


def test_runs_start_from_the_right_ones(plan: dict[str, Any]) -> None:
    stages = build_stages(plan)
    assert stages["rl-text-dapo-s1"].needs[0] == "sft-text-s1"
    assert stages["rl-la_dapo-s2"].needs[0] == "sft-latent-s2"
    assert stages["sft-random-s0"].needs[0] == "records-random-s0"
    assert stages["records-random-s0"].options["draw"] == "curate"
    assert stages["sft-text-s2"].needs[0] == "records-text"  # the same records for all seeds
    assert stages["test-backbone"].needs == ("world",)
    assert stages["sft-latent-s0"].options["set"]["trainer.max_steps"] == plan["sft"]["set"]["trainer.max_steps"]


def test_a_variant_tests_the_same_weights_with_other_settings(plan: dict[str, Any]) -> None:
    stages = build_stages(plan)
    fixed, free = (stages[f"test-sft-L4{variant}-s1"] for variant in ("", "+free4"))
    assert fixed.needs == free.needs == ("sft-L4-s1", "world")
    assert free.options["set"] == {**fixed.options["set"], **plan["test"]["variants"]["free4"]}
    assert digests(stages)[fixed.name] != digests(stages)[free.name]
    plan["rows"]["sft-L4+other"] = "unknown"
    with pytest.raises(ValueError, match=r"no test variant 'other'.*sft-L4\+other"):
        build_stages(plan)


def test_seeds_add_stages_and_change_none(plan: dict[str, Any]) -> None:
    few, many = ({**plan, "seeds": seeds} for seeds in ([0], [0, 1, 2]))
    one, three = (digests(build_stages(made)) for made in (few, many))
    assert one.items() < three.items()


def test_a_plan_adds_seeds_for_single_runs(plan: dict[str, Any]) -> None:
    few, more = (
        digests(build_stages({**plan, "more_seeds": added})) for added in ({}, {"seeds": [3, 4], "runs": ["rl-grpo"]})
    )
    assert few.items() < more.items()
    runs = {"sft-latent", "rl-grpo", "test-rl-grpo"}  # no test or study of the run that it starts from
    assert more.keys() - few.keys() == {f"{run}-s{seed}" for run in runs for seed in (3, 4)}


@pytest.mark.parametrize(
    ("path", "value", "changed", "kept"),
    [
        (("world", "train"), 8, "world", None),
        (("world", "size"), 96, "test-backbone", None),
        (("curate", "top"), 7, "sft-latent-s0", "probe"),
        (("rl", "runs", "gaussian", "set", "model.init_args.latent_policy"), None, "rl-gaussian-s1", "rl-la_dapo-s1"),
        (("sft", "set", "trainer.max_steps"), 7, "test-rl-la_dapo-s0", "curate"),
        (("test", "set"), {"seed_everything": 3}, "controls-sft-latent-s0", "sft-latent-s0"),
        (("retrieval", "train"), 7, "retrieval-sft-latent-s0", "test-sft-latent-s0"),
        (("diagnose", "count"), 7, "diagnose-sft-latent-s0", "world"),
        (("backbone",), "another folder", "test-backbone", "world"),
        (("rows", "sft-text"), "another name", None, "sft-text-s0"),
    ],
)
def test_digest_follows_the_plan(
    plan: dict[str, Any], tmp_path: Path, path: tuple[str, ...], value: object, changed: str | None, kept: str | None
) -> None:
    before = digests(build_stages(plan))
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    value = str(tmp_path) if value == "another folder" else value
    other = deepcopy(plan)
    place = other
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    after = digests(build_stages(other))
    assert changed is None or before[changed] != after[changed]
    assert kept is None or before[kept] == after[kept]


def test_digest_follows_configuration_files(
    plan: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = build_stages(plan)
    before = digests(stages)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Think.")
    for file in module.CONFIGS.glob("*.yaml"):
        settings = yaml.safe_load(file.read_text())
        if file.stem == "rl":
            settings["model"]["init_args"]["learning_rate"] = 1e-9
        if file.stem == "test":
            settings["data"]["init_args"]["system_prompt"] = str(prompt)
        (tmp_path / file.name).write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(module, "CONFIGS", tmp_path)
    after = digests(stages)
    changed = {name for name in stages if before[name] != after[name]}
    assert {"rl-la_dapo-s0", "test-sft-latent-s0"} <= changed
    assert {"sft-latent-s0", "curate"}.isdisjoint(changed)
    prompt.write_text("Think twice.")
    assert digests(stages)["test-sft-latent-s0"] != after["test-sft-latent-s0"]


def test_a_backbone_without_weights_is_refused(plan: dict[str, Any], tmp_path: Path) -> None:
    plan["backbone"] = str(tmp_path)
    with pytest.raises(ValueError, match=f"no backbone in {tmp_path}"):
        digests(build_stages(plan))


def test_a_diagnosis_needs_its_runs_and_questions_about_two_futures(plan: dict[str, Any]) -> None:
    stages = build_stages(plan)
    assert stages["diagnose-sft-latent-s1"].needs == ("sft-latent-s1", "counterfactual", "sft-text-s1")
    assert stages["diagnose-sft-constant-s1"].needs == ("sft-constant-s1", "counterfactual")
    asked = stages["counterfactual"].options
    assert asked == {**plan["world"], "train": 0, "test": 0, "rl": 0, "counterfactual": plan["diagnose"]["count"]}


def test_comments_and_order_change_no_digest(plan: dict[str, Any]) -> None:
    backwards = dict(reversed(plan.items()))
    assert digests(build_stages(backwards)) == digests(build_stages(plan))


def test_a_run_may_choose_the_records(plan: dict[str, Any]) -> None:
    plan["records"]["some"] = {"draw": 64}
    plan["sft"]["runs"]["probe"] = {"records": "some"}
    plan["probe"]["model"] = "sft-probe"
    stages = build_stages({**plan, "seeds": [1]})
    assert stages["probe"].needs == ("split", "sft-probe-s0")
    assert "test-sft-probe-s0" not in stages


def test_a_run_made_from_itself_is_refused(plan: dict[str, Any]) -> None:
    plan["probe"]["model"] = "sft-latent"  # trained on what it would choose
    with pytest.raises(ValueError, match="sft-latent-s0"):
        build_stages(plan)


def test_an_unknown_run_is_refused(plan: dict[str, Any]) -> None:
    plan["rows"]["sft-nothing"] = "nothing"
    with pytest.raises(ValueError, match="no run 'sft-nothing'"):
        build_stages(plan)


def test_quick_plan_has_the_same_rows() -> None:
    quick, plan = load_plan(MINIATURE, quick=True), load_plan(MINIATURE)
    assert quick["rows"] == plan["rows"]
    assert quick["world"]["train"] < 100
    assert quick["rl"]["runs"] == plan["rl"]["runs"]
    assert set(build_stages(quick)) == set(build_stages({**plan, "seeds": [0], "more_seeds": {}}))


def test_needs_of_a_stage(plan: dict[str, Any]) -> None:
    names = with_needs(["test-sft-text-s0"], build_stages(plan))
    assert names == ["world", "split", "probe", "curate", "records-text", "sft-text-s0", "test-sft-text-s0"]


def test_stage_knows_its_configuration() -> None:
    assert Stage("a", "controls", 0, ()).config_file == module.CONFIGS / "test.yaml"
    assert Stage("a", "world", None, ()).config_file is None
