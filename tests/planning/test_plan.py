"""`futurel1 plan` on configurations that ship and on small ones."""

import json
import re
from pathlib import Path

import pytest
import torch

from futurel1.cli import main
from futurel1.errors import FutureL1Error
from futurel1.models import LatentReasoner
from futurel1.planning import Plan, plan
from futurel1.planning.configured import ConfiguredRun
from futurel1.planning.memory import CONTEXT, FRAGMENTATION, GIB
from futurel1.planning.meta_model import meta_reasoner

ROOT = Path(__file__).parents[2]
LARGE = sorted((ROOT / "configs" / "qwen3_vl_8b").glob("*.yaml"))
CONFIGURATIONS, PAGE = ROOT / "docs" / "configurations.md", ROOT / "docs" / "plan.md"
BACKBONE = "--model.init_args.backbone"
ONE_LAYER = [BACKBONE, "tiny@random:layers=1"]
ALONE = ["--data.init_args.batch_size", "1"]
SMALL = ["--data.init_args.max_length", "600"]


@pytest.mark.slow
@pytest.mark.parametrize("config", LARGE, ids=lambda path: path.stem)
def test_shipped_configurations_fit_at_their_longest(config: Path) -> None:
    (row,) = (line for line in CONFIGURATIONS.read_text().splitlines() if f"configs/qwen3_vl_8b/{config.name}`" in line)
    (memory,) = re.findall(r"\| (?:8 x )?(\d+) GB \|", row)
    found = plan(str(config), memory=float(memory))
    assert found.ok, str(found)
    assert not found.advice
    worst = max(phase.total for phase in found.longest)
    assert f"plan: {worst / 1e9:.0f} of {found.limit / 1e9:.0f} GB" in row
    if config.stem == "la_dapo":
        assert str(found) in PAGE.read_text()
    assert "8.77 B weights" in found.model or "8.85 B weights" in found.model  # 8.77 without adapters
    assert max(phase.total for phase in found.typical) < max(phase.total for phase in found.longest)


def small_plan(config: str, memory: float, *settings: str) -> Plan:
    return plan(config, memory=memory, settings=[*SMALL, *settings])


def test_the_largest_batch_that_fits_is_named() -> None:
    rows = {count: small_plan("tiny/sft", 80, "--data.init_args.batch_size", str(count)).longest for count in (5, 6)}
    five, six = (max(phase.total for phase in rows[count]) for count in (5, 6))
    memory = ((five + six) / 2 + CONTEXT) / (1 - FRAGMENTATION) / GIB
    found = small_plan("tiny/sft", memory)
    assert not found.ok
    assert found.advice == ["update: data.batch_size: 8 is too large, 5 fits"]


def test_records_that_are_too_long_alone_are_to_be_shorter_and_alone() -> None:
    length = "--data.init_args.max_length"
    one, two = (
        max(phase.total for phase in small_plan("tiny/sft", 80, *ONE_LAYER, *ALONE, length, tokens).longest)
        for tokens in ("512", "600")
    )
    memory = ((one + two) / 2 + CONTEXT) / (1 - FRAGMENTATION) / GIB
    for settings, given in (
        (["--data.init_args.batch_size", "2"], "data.batch_size: 1"),
        (["--data.init_args.tokens_per_batch", "1200"], "data.tokens_per_batch: 512"),
    ):
        (advice,) = small_plan("tiny/sft", memory, *ONE_LAYER, *settings).advice
        assert advice == f"update: a record of 600 tokens is too large; {given} with data.max_length: 512 fits"


def test_budgets_of_tokens_decide_on_rows_and_lengths() -> None:
    budget = "--data.init_args.tokens_per_batch"
    assert small_plan("tiny/sft", 80, *ONE_LAYER, budget, "2400").sizes == (
        "micro-batches of 8 x (prompt of 225 tokens, response of 64)",
        "micro-batches of 4 x (prompt of 450 tokens, response of 150)",
    )
    assert (
        "1 x (prompt of 300 tokens, response of 100)" in small_plan("tiny/sft", 80, *ONE_LAYER, budget, "400").sizes[1]
    )


def test_more_devices_take_less_each() -> None:
    sharded = ["--trainer.strategy", "ModelParallelStrategy", "--trainer.strategy.tensor_parallel_size", "1"]
    found = {
        count: plan(
            "tiny/sft", devices=count,
            settings=[*SMALL, *sharded, "--trainer.strategy.data_parallel_size", str(count)],
        )
        for count in (1, 4)
    }  # fmt: skip
    (one,), (four,) = ([phase for phase in found[count].longest if phase.name == "step"] for count in (1, 4))
    assert four.parts["optimizer state"] == pytest.approx(one.parts["optimizer state"] / 4, rel=0.01)
    assert four.parts["gradients"] == pytest.approx(one.parts["gradients"] / 4, rel=0.01)
    assert four.parts["weights"] < one.parts["weights"]  # the tower stays whole
    assert "4 devices, FSDP2" in found[4].model


def test_hybrid_shards_are_within_a_node() -> None:
    nodes = ["--trainer.num_nodes", "2", "--trainer.devices", "4", "--trainer.strategy", "ModelParallelStrategy"]
    sizes = ((8, 1), ("auto", "auto"))
    run, hybrid = (
        ConfiguredRun.read(
            "tiny/sft",
            [
                *SMALL,
                *nodes,
                f"--trainer.strategy.data_parallel_size={data}",
                f"--trainer.strategy.tensor_parallel_size={own}",
            ],
        )
        for data, own in sizes
    )
    assert (run.devices, run.shards) == (8, 8)
    assert (hybrid.devices, hybrid.shards) == (8, 4)


def test_exit_status_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "tiny/predict", "--json", *SMALL])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"]
    assert {phase["name"] for phase in answer["longest"]} == {"sampling"}
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--config", "tiny/predict", "--memory", "1", *SMALL])
    assert stopped.value.code == 1
    shown = capsys.readouterr().out
    assert "does not fit: sampling takes" in shown
    assert "peak" in shown


def test_reinforcement_learning_has_three_phases() -> None:
    found = small_plan("tiny/la_dapo", 80)
    assert [phase.name for phase in found.longest] == ["sampling", "update", "step"]
    assert all("reference" in phase.parts for phase in found.longest)
    without = small_plan("tiny/la_dapo", 80, "--model.init_args.objective.kl_weight", "0")
    assert not any("reference" in phase.parts for phase in without.longest)
    assert found.estimate.sampling > 0
    assert found.estimate.update > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": ""}, "needs a configuration"),
        ({"config": "tiny/pretrain_tower"}, "TowerPretrainModule has no plan"),
        ({"config": "tiny/predict", "prompt": 10**6}, "allows prompts of"),
        ({"config": "tiny/sft", "settings": ["--data.init_args.max_length", "100"]}, "too short to plan for"),
        ({"config": "tiny/sft", "settings": ["--data.init_args.max_length", "null"]}, "has no max_length"),
        ({"config": "tiny/pretrain_imagine"}, "SceneClipsDataModule has no max_length"),
        ({"config": "tiny/sft", "memory": 0.5}, "less than CUDA itself takes"),
        ({"config": "tiny/sft", "tflops": 0}, "tflops has to be more than 0"),
        ({"config": "tiny/sft", "prompt": 0}, "prompt has to be more than 0"),
        ({"config": "tiny/sft", "settings": ["--trainer.precision", "bf16-true"]}, "no trainer.precision bf16-true"),
        ({"config": "tiny/sft", "settings": ["--trainer.accelerator", "gpu"]}, "say how many there are by --devices"),
        ({"config": "tiny/sft", "settings": ["--trainer.devices", "[0, 1]"]}, r"not \[0, 1\]; give one by --devices"),
        ({"config": "tiny/sft", "settings": ["--trainer.accelerator", "tpu"]}, "no accelerator tpu"),
        ({"config": "tiny/sft", "settings": ["--trainer.strategy", "deepspeed"]}, "no deepspeed; use ddp"),
        (
            {"config": "qwen3_vl_8b/sft", "settings": ["--trainer.devices", "4"]},
            "8 times tensor_parallel_size 1 is not",
        ),
        ({"config": "tiny/sft", "settings": [BACKBONE, "some/model"]}, "some/model is not on this machine"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(FutureL1Error, match=message):
        plan(**arguments)  # type: ignore[arg-type]


def sharded_plan(nodes: int, copies: int | str, shards: int | str, *settings: str) -> dict[str, int]:
    """Memory of an update on 4 devices of each node."""
    strategy = "--trainer.strategy"
    found = small_plan(
        "tiny/sft", 80, *ONE_LAYER, strategy, "ModelParallelStrategy", f"{strategy}.data_parallel_size", str(copies),
        f"{strategy}.tensor_parallel_size", str(shards), "--trainer.devices", "4", "--trainer.num_nodes", str(nodes),
        *settings,
    )  # fmt: skip
    return found.longest[0].parts


def test_nodes_that_hold_copies_share_no_weights() -> None:
    state = {
        shape: sharded_plan(*shape)["optimizer state"]
        for shape in ((1, 4, 1), (2, 8, 1), (2, 2, 4), (2, "auto", "auto"))
    }
    assert state[2, 8, 1] == pytest.approx(state[1, 4, 1] / 2, rel=0.01)
    assert state[2, 2, 4] == state[2, "auto", "auto"] == state[1, 4, 1]


def test_gradients_that_are_exchanged_once_a_step_are_whole() -> None:
    often, once = (
        sharded_plan(1, 4, 1, "--trainer.accumulate_grad_batches", "2", "--model.init_args.reduce_once", value)
        for value in ("false", "true")
    )
    assert once["gradients"] == pytest.approx(4 * often["gradients"], rel=0.01)


def test_start_weights_that_are_here_and_their_head_decide_on_the_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LatentReasoner.from_pretrained("tiny@random:layers=1", projection_head="lvr").save_pretrained(tmp_path / "one")
    start = "--model.init_args.init_from"
    whole, short, expected = (
        small_plan("tiny/sft", 80, *settings).longest[0].parts["weights"]
        for settings in (
            (start, str(tmp_path / "none")),
            (start, str(tmp_path / "one")),
            (BACKBONE, "tiny@random:layers=1", "--model.init_args.projection_head", "lvr"),
        )
    )
    assert short == expected < whole
    assert "none is not here: the plan is for a model of the shape of tiny" in caplog.text


def test_a_wider_head_has_more_weights() -> None:
    head, width = "--model.init_args.projection_head", "--model.init_args.projection_hidden_dim"
    narrow, wide = (
        small_plan("tiny/sft", 80, *ONE_LAYER, head, "swiglu", width, str(inner)).longest[0].parts["weights"]
        for inner in (64, 128)
    )
    hidden = LatentReasoner.from_pretrained("tiny").hidden_size
    assert wide - narrow == 4 * (2 * 64 * hidden + 64 + 3 * (128**2 - 64**2))


def test_a_head_that_would_not_learn_is_frozen_as_in_the_run() -> None:
    head = [*ONE_LAYER, "--model.init_args.projection_head", "lvr"]
    learning, idle = (
        small_plan("tiny/la_dapo", 80, *head, "--model.init_args.objective.latent_weight", weight).longest[0].parts
        for weight in ("0.5", "0")
    )
    assert idle["weights"] == learning["weights"]
    assert idle["optimizer state"] < learning["optimizer state"]


def test_published_shapes_are_taken_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> None:
        raise AssertionError("a plan downloads nothing")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    start = {"backbone": "Qwen/Qwen3-VL-2B-Instruct", "init_from": None, "attn_implementation": "sdpa"}
    assert meta_reasoner(start, torch.bfloat16).hidden_size == 2048


def test_kernels_of_gpus_are_planned_as_those_that_keep_as_much() -> None:
    stock = small_plan("tiny/sft", 80, *ONE_LAYER).longest
    flash, liger = "--model.init_args.attn_implementation", "--model.init_args.cross_entropy"
    assert small_plan("tiny/sft", 80, *ONE_LAYER, flash, "flash_attention_2", liger, "liger").longest == stock
