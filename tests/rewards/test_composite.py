"""Rewards put together: weights, presets, rewards of one's own, the judge, YAML."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
import yaml
from judge_server import Reply, Request, serving
from torch import Tensor

from futurel1.errors import BatchError, ConfigError
from futurel1.rewards import (
    AccuracyReward,
    CompositeReward,
    FormatReward,
    Judge,
    LengthPenalty,
    OutcomeContrastiveReward,
    RewardInputs,
    TemporalDiversityReward,
)
from rollouts import RIGHT, WRONG, make_inputs, with_latents

MINE = '''
import torch

NUMBER = 3

def brevity(inputs):
    """Also sees what is correct."""
    return torch.where(inputs.correct == 1, 10, 20) - inputs.response_lengths

def a_list(inputs):
    return [1.0] * len(inputs)

def one_number(inputs):
    return torch.tensor(1.0)

class Brevity:
    def __call__(self, inputs):
        return inputs.response_lengths
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own."""
    (tmp_path / "my_rewards.py").write_text(MINE)
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    return "my_rewards"


def make_judge(url: str) -> Judge:
    return Judge(
        url, "judge-model", api_key_env=None, max_attempts=2, wait_base_s=0.005, wait_max_s=0.01, max_failure_rate=1.0
    )


# Sums


def test_total_is_the_weighted_sum() -> None:
    inputs = make_inputs(
        [RIGHT, WRONG, "no"], response_lengths=torch.tensor([30, 20, 10]), reference_lengths=torch.full((3,), 15)
    )
    rewards = {"format": FormatReward(), "accuracy": AccuracyReward(), "length": LengthPenalty()}
    output = CompositeReward(rewards, {"accuracy": 2.0, "format": 0.5, "length": -0.1})(inputs)
    torch.testing.assert_close(output.total, torch.tensor([1.0, 0.0, 0.0]))
    assert output.parts["length"].tolist() == [15, 5, 0]
    assert output.valid.all()
    assert output.total.dtype == torch.float32


def test_presets_have_the_weights_of_the_paper() -> None:
    paper, released = CompositeReward.preset("paper"), CompositeReward.preset("released")
    six = {"accuracy": 0.9, "format": 0.1, "length": 0.0, "repetition": 0.0, "contrastive": 0.2, "diversity": 0.1}
    assert paper.weights == six
    assert released.weights == {**six, "length": -0.001}
    assert CompositeReward.preset().weights == six
    rows = [torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[0.0, 1], [1, 1]]), torch.tensor([[1.0, 1], [1, 1]])]
    inputs = replace(with_latents(rows, [1, 1, 0], [0] * 3), correct=None, responses=[RIGHT, RIGHT, WRONG])
    parts = paper(inputs).parts
    assert torch.equal(parts["contrastive"], OutcomeContrastiveReward(0.5, "paper")(inputs))
    assert torch.equal(parts["diversity"], TemporalDiversityReward()(inputs))
    torch.testing.assert_close(
        paper(inputs).total,
        0.9 * torch.tensor([1.0, 1, 0]) + 0.1 + 0.2 * parts["contrastive"] + 0.1 * parts["diversity"],
    )
    with pytest.raises(ConfigError, match="the reward presets are 'paper' and 'released', got 'best'"):
        CompositeReward.preset("best")  # type: ignore[arg-type]
    judge = Judge("http://localhost:1/v1", "judge", api_key_env=None)
    with pytest.raises(ConfigError, match=r"judge and rewards\.accuracy are both given"):
        CompositeReward.preset(judge=judge, rewards={"accuracy": AccuracyReward()})


def test_preset_with_more_rewards_and_other_weights(mine: str) -> None:
    composite = CompositeReward.preset(
        rewards={"brevity": f"{mine}:brevity", "diversity": TemporalDiversityReward(min_spans=1)},
        weights={"brevity": 0.5, "accuracy": 1.0},
    )
    assert composite.weights["accuracy"] == 1.0
    assert len(composite.rewards) == 7
    output = composite(make_inputs([RIGHT, WRONG]))
    assert output.parts["brevity"].tolist() == [-40, -30]
    assert output.parts["diversity"].tolist() == [-1, -1]
    torch.testing.assert_close(output.total, torch.tensor([1 + 0.1 - 0.1 - 20, 0.1 - 0.1 - 15]))
    with pytest.raises(ConfigError, match=r"without a weight: \['brevity'\], without a reward: \['brief'\]"):
        CompositeReward.preset(rewards={"brevity": FormatReward()}, weights={"brief": 1.0})


def test_no_rollouts() -> None:
    output = CompositeReward.preset("paper")(make_inputs([]))
    assert output.total.shape == output.valid.shape == (0,)


# Not computed


def test_an_invalid_part_makes_the_total_invalid_unless_its_weight_is_zero() -> None:
    def broken(inputs: RewardInputs) -> Tensor:
        return torch.tensor([1.0, torch.nan, torch.inf])

    rewards: dict[str, Any] = {"format": FormatReward(), "mine": broken}
    output = CompositeReward(rewards, {"format": 1.0, "mine": 1.0})(make_inputs([RIGHT] * 3))
    assert output.valid.tolist() == [True, False, False]
    assert output.total[0] == 2
    assert output.total[1:].isnan().all()
    output = CompositeReward(rewards, {"format": 1.0, "mine": 0.0})(make_inputs([RIGHT] * 3))
    assert output.valid.all()
    assert output.total.tolist() == [1, 1, 1]


# Judge


def test_only_what_the_rule_fails_is_judged_and_only_once() -> None:
    repetitive = "<reason>" + "he walks on and " * 20 + "</reason><answer>the gate</answer>"
    responses = [
        RIGHT,
        "<answer>the gate</answer>",
        "<answer>the door</answer>",
        "no answer",
        "<answer> </answer>",
        repetitive,
    ]

    def respond(request: Request) -> Reply:
        return Reply("yes" if "the gate" in request.text else "no")

    rows = [torch.tensor([[1.0, row]]) for row in range(6)]
    inputs = replace(with_latents(rows, [0.0] * 6, [0] * 6), correct=None, responses=responses)
    with serving(respond) as server:
        output = CompositeReward.preset("paper", judge=make_judge(server.url))(inputs)
        assert sorted(request.number for request in server.requests) == [1, 2]
        assert "the gate" in server.requests[0].text + server.requests[1].text
    accuracy = [1, 1, 0, 0, 0, -1]
    assert output.parts["accuracy"].tolist() == accuracy
    assert output.valid.all()
    # The judge's verdict, not the rule, tells the contrastive reward what is correct.
    known = OutcomeContrastiveReward()(replace(inputs, correct=torch.tensor(accuracy, dtype=torch.float32)))
    assert torch.equal(output.parts["contrastive"], known)


def test_a_judge_that_is_down_makes_no_rollout_wrong() -> None:
    responses = [RIGHT, "<answer>the gate</answer>", "no answer"]
    for reply in (Reply(status=503, body="overloaded"), Reply("I cannot tell.")):
        with serving(lambda request, reply=reply: reply) as server:  # type: ignore[misc]
            output = CompositeReward.preset("paper", judge=make_judge(server.url))(make_inputs(responses))
        assert output.parts["accuracy"].isnan().tolist() == [False, True, False]
        assert output.valid.tolist() == [True, False, True]
        assert output.total.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(output.total[[0, 2]], torch.tensor([1.0, 0.0]))


def test_a_rollout_that_could_not_be_judged_is_neither_positive_nor_negative() -> None:
    rows = [torch.tensor([[1.0, row]]) for row in range(4)]
    inputs = replace(
        with_latents(rows, [0.0] * 4, [0] * 4),
        correct=None,
        responses=[RIGHT, RIGHT, WRONG, "<answer>the gate</answer>"],
    )
    with serving(lambda request: Reply("no") if request.number == 2 else Reply(status=500)) as server:
        judge = make_judge(server.url)
        paper = CompositeReward.preset("paper", judge=judge)(inputs)
        released = CompositeReward.preset("released", judge=judge)(inputs)
    torch.testing.assert_close(paper.parts["accuracy"], torch.tensor([1, 1, 0, torch.nan]), equal_nan=True)
    without = with_latents(rows[:3], [1, 1, 0], [0] * 3)
    torch.testing.assert_close(paper.parts["contrastive"][:3], OutcomeContrastiveReward()(without))
    torch.testing.assert_close(released.parts["contrastive"][:3], OutcomeContrastiveReward(variant="released")(without))
    assert paper.parts["contrastive"][3].isfinite()
    assert released.parts["contrastive"][3].isnan()
    assert paper.valid.tolist() == released.valid.tolist() == [True, True, True, False]


# Rewards of one's own


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("my_rewards.brevity", "rewards.mine must be a reward or 'module:callable', got 'my_rewards.brevity'"),
        (":brevity", "rewards.mine must be a reward or 'module:callable'"),
        ("my_rewards:", "rewards.mine must be a reward or 'module:callable'"),
        ("not_there:brevity", "rewards.mine: 'not_there:brevity' cannot be imported .*PYTHONPATH"),
        ("my_broken:brevity", "rewards.mine: .*No module named 'not_installed_anywhere'"),
        ("my_rewards:brief", "rewards.mine: module 'my_rewards' has no 'brief'"),
        ("my_rewards:NUMBER", "rewards.mine: 'my_rewards:NUMBER' is not callable, but a int"),
        ("my_rewards:Brevity", "rewards.mine: Brevity is a class; give an instance, or class_path and init_args"),
    ],
)
def test_rewards_that_cannot_be_had(mine: str, reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompositeReward({"mine": reference}, {"mine": 1.0})


@pytest.mark.parametrize(("name", "got"), [("a_list", "got list"), ("one_number", r"got torch.float32 of shape \(\)")])
def test_rewards_that_return_something_else(mine: str, name: str, got: str) -> None:
    composite = CompositeReward({"mine": f"{mine}:{name}"}, {"mine": 1.0})
    with pytest.raises(ConfigError, match=f"rewards.mine must return a tensor of 2 numbers, one per rollout, {got}"):
        composite(make_inputs([RIGHT, WRONG]))


def test_names_and_weights_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"without a weight: \['a'\], without a reward: \['b'\]"):
        CompositeReward({"a": FormatReward()}, {"b": 1.0})
    with pytest.raises(ConfigError, match=r"weights\.a must be a finite number, got nan"):
        CompositeReward({"a": FormatReward()}, {"a": float("nan")})
    with pytest.raises(ConfigError, match="rewards is empty"):
        CompositeReward({}, {})


# YAML


class Trainee:
    """Stands for a module with a reward."""

    def __init__(self, reward: CompositeReward | None = None) -> None:
        self.reward = CompositeReward.preset("paper") if reward is None else reward


def from_yaml(text: str) -> CompositeReward:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainee, "model")
    settings = parser.parse_object({"model": yaml.safe_load(text) or {}})
    # What a run saves can be read again.
    settings = parser.parse_string(parser.dump(settings, skip_unset=False))
    reward: CompositeReward = parser.instantiate(settings).model.reward
    return reward


def test_yaml(mine: str) -> None:
    composite = from_yaml("""
reward:
  class_path: futurel1.rewards.CompositeReward
  init_args:
    rewards:
      accuracy: {class_path: futurel1.rewards.AccuracyReward}
      format: {class_path: futurel1.rewards.FormatReward, init_args: {order: reason_first}}
      mine: "my_rewards:brevity"
    weights: {accuracy: 1, format: 0.1, mine: 0.01}
""")
    assert isinstance(composite.rewards["accuracy"], AccuracyReward)
    output = composite(make_inputs([RIGHT, WRONG]))
    torch.testing.assert_close(output.total, torch.tensor([1 - 0.4, -0.3]))


def test_yaml_presets(mine: str) -> None:
    assert from_yaml("").weights == CompositeReward.preset("paper").weights
    released = from_yaml("""
reward:
  class_path: futurel1.rewards.CompositeReward.preset
  init_args:
    name: released
    judge:
      class_path: futurel1.rewards.Judge
      init_args: {base_url: "http://127.0.0.1:9/v1", model: m, api_key_env: null}
    rewards:
      brevity: "my_rewards:brevity"
      overlong: {class_path: futurel1.rewards.OverlongPenalty, init_args: {max_length: 100, buffer: 80}}
    weights: {brevity: 0.5, overlong: -1}
""")
    assert released.weights == {**CompositeReward.preset("released").weights, "brevity": 0.5, "overlong": -1}
    assert isinstance(released.rewards["accuracy"].judge, Judge)  # type: ignore[attr-defined]
    assert released(make_inputs([RIGHT])).parts["overlong"].tolist() == [0.375]


# Inputs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": ["B"]}, "1 answers for 2 responses"),
        ({"problems": []}, "0 problems for 2 responses"),
        ({"group_ids": torch.zeros(3, dtype=torch.int64)}, r"group_ids must be \(2,\) int for 2 responses, got \(3,\)"),
        ({"group_ids": torch.zeros(2)}, r"group_ids must be \(2,\) int .*got \(2,\) torch.float32"),
        ({"response_lengths": torch.zeros(2, 1, dtype=torch.int64)}, r"response_lengths must be .*got \(2, 1\)"),
        ({"reference_lengths": torch.zeros(2)}, "reference_lengths must be"),
        ({"correct": torch.zeros(2, dtype=torch.int64)}, r"correct must be \(2,\) float"),
        ({"latents": torch.zeros(2, 3, 4)}, "give latents with their mask, or none"),
        ({"span_ids": torch.zeros(2, 3, dtype=torch.int64)}, "belong together"),
        ({"latents": torch.zeros(2, 3), "latent_mask": torch.zeros(2, 3).bool()}, r"latents must be \(N, S, H\) float"),
        ({"latents": torch.zeros(3, 3, 4), "latent_mask": torch.zeros(2, 3).bool()}, "latents of 3 rollouts for 2"),
        ({"latents": torch.zeros(2, 3, 4), "latent_mask": torch.zeros(2, 3)}, r"latent_mask must be \(2, 3\) bool"),
        (
            {"latents": torch.zeros(2, 3, 4), "latent_mask": torch.tensor([[True] * 3, [True, False, True]])},
            "latent_mask of response 1 has a gap; latents are padded on the right",
        ),
    ],
)
def test_inputs_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchError, match=message):
        make_inputs([RIGHT, WRONG], **fields)


def test_rewards_need_no_lightning() -> None:
    code = "import sys, futurel1.rewards.composite; print({'lightning', 'transformers'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
