from __future__ import annotations

import json
import math
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from la_dapo_options import nested
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision
from torch import Tensor
from toy_rewards import direction, down, parity, rare, starts

from futurel1.datamodules import RolloutPromptDataModule, VideoHintDataModule
from futurel1.errors import CheckpointError, ConfigError
from futurel1.models import LatentReasoner
from futurel1.models.decoding import RolloutScores
from futurel1.models.policies import (
    DeterministicLatents,
    GaussianLatents,
    LatentPolicy,
    ReleasedLatents,
    VonMisesFisherLatents,
)
from futurel1.modules import HuggingFaceExport, LADAPOModule, LatentSFTModule
from futurel1.modules.policy_statistics import StepStatistics
from futurel1.rewards import CompositeReward, RewardInputs
from futurel1.rollout import Experience
from futurel1.rollout.collector import RolloutError
from rounding import ROUNDINGS, assert_same_after_training, assert_same_but_rounding, assert_same_gradients

QUICK: dict[str, Any] = {
    "num_rollouts": 4, "batch_size": 2, "generation_batch_size": 2, "filter_key": "none", "max_new_tokens": 8,
    "learning_rate": 1e-3, "temperature": 1.0, "top_p": 1.0, "span_budget": "loose", "span_latents": 2,
}  # fmt: skip
LOG_PROB_ROUNDING = ROUNDINGS * torch.finfo(torch.float32).eps * math.log(1024)
"""Log-probabilities are of the size of the logarithm of the vocabulary."""


def only(reward: Any, name: str = "toy") -> CompositeReward:
    return CompositeReward({name: reward}, {name: 1.0})


def make_data(world: Path, **options: Any) -> RolloutPromptDataModule:
    defaults = {"train": str(world / "rl.jsonl"), "system_prompt": str(world / "prompt.txt"), "num_workers": 0}
    return RolloutPromptDataModule(**{**defaults, **options})


def make_trainer(tmp_path: Path, **options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": tmp_path, "max_steps": 2, "max_epochs": -1,
        "log_every_n_steps": 1,
    }  # fmt: skip
    return Trainer(**{**defaults, **options})


class Recorder(LADAPOModule):
    """Keeps every micro-batch with its scores, and what is logged in every optimizer step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows: list[dict[str, float]] = []
        self.seen: list[tuple[Experience, RolloutScores]] = []

    def training_step(self, batch: Experience, batch_idx: int) -> Tensor:
        with patch.object(StepStatistics, "add", autospec=True, side_effect=StepStatistics.add) as add:
            loss = super().training_step(batch, batch_idx)
        ((_, batch, scores, *_),) = (call.args for call in add.call_args_list)
        self.seen.append((batch, scores))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rows.append({})
        super().on_before_optimizer_step(optimizer)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self.rows:
            self.rows[-1][name] = float(value)
        super().log(name, value, *args, **kwargs)


def make_module(reward: Any = parity, **options: Any) -> Recorder:
    return Recorder(reward=only(reward), **nested({**QUICK, **options}))


def weights(module: LADAPOModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.reasoner.named_parameters()}


# ------------------------------------------------------------------ rollouts and training agree


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.7, "top_p": 0.9}, {"span_budget": "fixed"}, {"gradient_checkpointing": True},
    {"attn_implementation": "eager"},
], ids=["plain", "warm", "fixed", "checkpointing", "eager"])  # fmt: skip
def test_training_scores_what_sampling_recorded(
    rl_world: Path, tmp_path: Path, opening: str, options: dict[str, Any]
) -> None:
    module = make_module(backbone=opening, **options)
    make_trainer(tmp_path, accumulate_grad_batches=2).fit(module, make_data(rl_world))
    assert len(module.seen) == 4
    for batch, scores in module.seen:
        rollout = batch.rollout
        assert rollout.latent_mask.any()
        assert_same_but_rounding(scores.log_probs, rollout.log_probs)
        assert scores.log_probs.grad_fn is not None
        assert_same_but_rounding(scores.latent_log_probs, rollout.latent_log_probs)
        again = module.reasoner.eval().score(batch.prompt, rollout)
        assert again.shape == rollout.log_probs.shape
    gaps = [max(_gap(pair) for pair in module.seen[i : i + 2]) for i in (0, 2)]
    assert [row["train/log_prob_gap"] for row in module.rows] == pytest.approx(gaps)


def _gap(pair: tuple[Experience, RolloutScores]) -> float:
    return float((pair[1].log_probs.detach() - pair[0].rollout.log_probs).abs().max())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_ratio_is_exactly_one_at_the_first_update_of_a_rollout_batch(
    rl_world: Path, tmp_path: Path, opening: str, accumulate: int
) -> None:
    names = [f"train/{kind}ratio{end}" for kind in ("", "latent_") for end in ("", "_max", "_min")]
    module = make_module(backbone=opening)
    make_trainer(tmp_path, accumulate_grad_batches=accumulate).fit(module, make_data(rl_world))
    assert all(row[name] == 1.0 for row in module.rows for name in names)
    assert all(batch.old_log_probs is None for batch, _ in module.seen)

    module = make_module(backbone=opening, batch_size=4, num_epochs=2, num_minibatches=2)
    make_trainer(tmp_path, max_steps=8, accumulate_grad_batches=accumulate).fit(module, make_data(rl_world))
    for step, row in enumerate(module.rows):
        assert [row[name] == 1.0 for name in names] == [step % 4 == 0] * 6, step
        assert row["train/log_prob_gap"] < LOG_PROB_ROUNDING


def test_leftovers_keep_the_ratio_to_the_policy_that_sampled_them(rl_world: Path, tmp_path: Path, opening: str) -> None:
    # eight prompts a round, three wanted: what passes beyond them waits for the next rollout batch
    module = make_module(rare, backbone=opening, batch_size=4, filter_key="toy", filter_low=0.05)
    make_trainer(tmp_path, max_steps=6).fit(module, make_data(rl_world))
    later = [row for row, (batch, _) in zip(module.rows, module.seen, strict=True) if batch.old_log_probs is not None]
    assert later
    assert all(row["train/ratio_max"] > 1.0 for row in later)
    assert all(row["train/log_prob_gap"] < LOG_PROB_ROUNDING for row in module.rows)
    assert module.rows[0]["train/ratio_max"] == module.rows[0]["train/ratio_min"] == 1.0


# ------------------------------------------------------------------ the objective


@pytest.mark.parametrize("policy", [DeterministicLatents(), VonMisesFisherLatents()], ids=["text", "vmf"])
def test_a_step_moves_log_probs_by_the_sign_of_the_advantage(
    rl_world: Path, tmp_path: Path, opening: str, policy: LatentPolicy
) -> None:
    module = make_module(backbone=opening, latent_policy=policy, kl_weight=0.0, learning_rate=1e-6, num_rollouts=8)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    ((batch, before),) = module.seen
    with torch.no_grad():
        after = module.reasoner.eval().score_rollout(batch.prompt, batch.rollout)
    advantages = batch.advantages
    assert (advantages > 0).any()
    assert (advantages < 0).any()
    moved = {"text": (after.log_probs - before.log_probs).sum(dim=1)}
    if policy.samples:
        moved["latents"] = (after.latent_log_probs - before.latent_log_probs).sum(dim=1)
    for name, change in moved.items():
        assert change[advantages > 0].mean() > 0, name
        assert change[advantages < 0].mean() < 0, name
        right = (change.sign() == advantages.sign()).float().mean()
        assert right > 0.75, name


def test_one_micro_batch_of_eight_equals_eight_of_one(rl_world: Path, tmp_path: Path, opening: str) -> None:
    runs = []
    for accumulate in (1, 8, 3):
        module = make_module(backbone=opening, batch_size=8)
        trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        trainer.fit(module, make_data(rl_world))
        assert len(module.seen) == 2 * accumulate
        runs.append((module.rows, weights(module)))
    rows, final = runs[0]
    for other_rows, other_final in runs[1:]:
        assert len(rows) == len(other_rows) == 2
        for row, other in zip(rows, other_rows, strict=True):
            for name in ("loss", "policy_loss", "latent_loss", "kl", "entropy", "continue_entropy", "grad_norm"):
                assert other[f"train/{name}"] == pytest.approx(row[f"train/{name}"], rel=1e-4, abs=1e-7), name
            for name in ("train/decisions", "reward/toy", "rollout/tokens", "rollout/spans"):
                assert other[name] == row[name], name
        assert_same_after_training(other_final, final, learning_rate=1e-3)


def test_micro_batches_of_different_token_counts_share_one_mean(rl_world: Path, tmp_path: Path, opening: str) -> None:
    module = make_module(backbone=opening, batch_size=4, kl_weight=0.0, max_new_tokens=24)
    make_trainer(tmp_path, accumulate_grad_batches=4, max_steps=1).fit(module, make_data(rl_world))
    totals = {batch.total_tokens for batch, _ in module.seen}
    tokens = [int((batch.rollout.chosen_mask | batch.rollout.slot_mask).sum()) for batch, _ in module.seen]
    assert totals == {sum(tokens)}
    loss = sum(
        -(batch.advantages * batch.rollout.chosen_mask.sum(dim=1)).sum().item()
        - 0.5 * (batch.advantages * batch.rollout.latent_mask.sum(dim=1)).sum().item()
        for batch, _ in module.seen
    )
    assert module.rows[0]["train/loss"] == pytest.approx(loss / sum(tokens), abs=1e-5)  # all ratios are one


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_rollouts_end_with_any_id_that_the_checkpoint_names(
    rl_world: Path, tmp_path: Path, opening: str, lora_rank: int
) -> None:
    """Two branches end in their third step, one by each id of a list as stock Qwen3-VL has it."""
    folder = tmp_path / "listed"
    shutil.copytree(opening, folder)
    ends = [1014, 1015]  # <|im_end|>, which alone is the tokenizer's, and <|endoftext|>
    generation = folder / "generation_config.json"
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "eos_token_id": ends}))
    seen: list[RewardInputs] = []

    def watched(inputs: RewardInputs) -> Tensor:
        seen.append(inputs)
        return torch.zeros(len(inputs))

    module = make_module(watched, backbone=str(folder), num_rollouts=2, lora_rank=lora_rank, span_latents=8)
    module.configure_model()
    data = make_data(rl_world, processor=str(folder))
    span_end = module.reasoner.tokens.end_id
    script = iter([[0, 0], [span_end, span_end], ends])  # the first token, START, is forced

    def write(lm_head: Any, args: Any, logits: Tensor) -> Tensor:
        return logits.index_put((torch.arange(2), torch.tensor(next(script))), torch.tensor(1e4))

    hook = module.reasoner.backbone.lm_head.register_forward_hook(write)
    (group,), records = module.sampler.sample_groups([(0, data.dataset("train")[0])])
    hook.remove()
    assert group.rollout.finish_reasons == ["eos", "eos"]
    assert [record["finish_reason"] for record in records] == ["eos", "eos"]
    assert group.rollout.responses[:, 2].tolist() == ends
    assert seen[0].response_lengths.tolist() == [3, 3]
    assert not any("<|im_end|>" in text or "<|endoftext|>" in text for text in seen[0].responses)
    assert LatentReasoner.from_pretrained(module.export(tmp_path / "out")).end_token_ids == ends


def test_forced_tokens_take_no_gradient(rl_world: Path, tmp_path: Path, opening: str) -> None:
    # START, four LATENT slots and END: the policy chose nothing
    forced = {"backbone": opening, "span_budget": "fixed", "span_latents": 4, "max_new_tokens": 6}
    text = {**forced, "latent_policy": DeterministicLatents()}
    length = lambda inputs: inputs.group_ids.new_tensor(range(len(inputs))).float() % 4  # noqa: E731
    module = make_module(length, **text)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    ((batch, _),) = module.seen
    assert batch.rollout.response_mask.all()
    assert not batch.rollout.chosen_mask.any()
    assert batch.advantages.abs().max() > 1
    assert module.rows[0]["train/decisions"] == module.rows[0]["train/grad_norm"] == 0.0
    # drawn latents are all there is to learn from
    module = make_module(length, **forced)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    assert module.rows[0]["train/decisions"] == 0.0
    assert module.rows[0]["train/grad_norm"] > 0
    # one more token is one decision per response, and the gradient is that of its log-probability alone
    module = make_module(length, **{**text, "max_new_tokens": 7, "kl_weight": 0.0})
    module.configure_model()
    gradients: dict[str, Tensor] = {}
    module.on_before_optimizer_step = lambda optimizer: gradients.update(  # type: ignore[method-assign]
        {name: p.grad.clone() for name, p in module.reasoner.named_parameters() if p.grad is not None}
    )
    start = weights(module)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    ((batch, _),) = module.seen
    assert (batch.rollout.chosen_mask.nonzero()[:, 1] == 6).all()
    module.reasoner.load_state_dict(start, strict=False)
    module.zero_grad()
    log_probs = module.reasoner.eval().score(batch.prompt, batch.rollout)[:, 6]
    (-(batch.advantages * log_probs).sum() / batch.total_tokens).backward()
    assert gradients
    assert_same_gradients(gradients, {name: module.reasoner.get_parameter(name).grad for name in gradients})


@pytest.mark.parametrize("options", [
    {}, {"freeze": [], "projection_head": "lvr"}, {"freeze": ["vision", "llm"]}, {"lora_rank": 4},
    {"freeze": ["vision", "merger", "llm"], "latent_policy": GaussianLatents()},
    {"latent_policy": DeterministicLatents()}, {"latent_weight": 0.0},
], ids=["paper", "all", "no-llm", "lora", "head", "deterministic", "no-latent-term"])  # fmt: skip
def test_every_trainable_parameter_changes_and_no_frozen_one_does(
    rl_world: Path, tmp_path: Path, opening: str, options: dict[str, Any]
) -> None:
    module = make_module(backbone=opening, **options)
    module.configure_model()
    before = weights(module)
    make_trainer(tmp_path, max_steps=2).fit(module, make_data(rl_world))
    trained = {name for name, parameter in module.reasoner.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    # without a latent term nothing can reach the head
    learns = not isinstance(module.latent_policy, DeterministicLatents) and module.objective.latent_weight > 0
    assert any("projection_head" in name for name in trained) == learns


# ------------------------------------------------------------------ learning


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory, rl_world: Path) -> str:
    """The tiny checkpoint, changed so that about one response in eight begins with START."""
    module = make_module()
    module.configure_model()
    data = make_data(rl_world, processor="tiny@random", batch_size=8, val=str(rl_world / "rl.jsonl"))
    (batch,) = list(data.val_dataloader())
    reasoner = module.reasoner.eval()
    with torch.no_grad():
        hidden = reasoner(batch.input_ids, batch.attention_mask, reasoner.encode(batch))[:, -1].mean(dim=0)
        logits = reasoner.backbone.lm_head(hidden)
        missing = logits.logsumexp(dim=0) - math.log(8) - logits[reasoner.tokens.start_id]
        reasoner.backbone.lm_head.weight[reasoner.tokens.start_id] += hidden * (missing / hidden.square().sum())
    return str(reasoner.save_pretrained(tmp_path_factory.mktemp("eager")))


class StopWhenLearned(Callback):
    """Ends training when the last eight rollout batches earned nearly all there is."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        recent = [row["reward/toy"] for row in pl_module.rows[-8:]]
        trainer.should_stop = len(recent) == 8 and sum(recent) / 8 > 0.92


@pytest.mark.parametrize("policy", [DeterministicLatents(), VonMisesFisherLatents(), GaussianLatents()])
def test_a_reward_for_start_is_learned(rl_world: Path, tmp_path: Path, eager: str, policy: LatentPolicy) -> None:
    module = make_module(
        starts, backbone=eager, latent_policy=policy, num_rollouts=16, batch_size=1, generation_batch_size=1,
        max_new_tokens=4, span_latents=1, kl_weight=1e-3, learning_rate=3e-4,
    )  # fmt: skip
    trainer = make_trainer(tmp_path, max_steps=60, gradient_clip_val=1.0, callbacks=[StopWhenLearned()])
    trainer.fit(module, make_data(rl_world))
    rates = [row["reward/toy"] for row in module.rows]
    assert sum(rates[:2]) / 2 < 0.4
    assert sum(rates[-4:]) / 4 > 0.9
    assert module.rows[0]["train/kl"] == pytest.approx(0.0, abs=1e-6)
    assert module.rows[-1]["train/kl"] > 0.1


@pytest.mark.parametrize(("policy", "learns"), [
    (VonMisesFisherLatents(), True), (GaussianLatents(), True), (ReleasedLatents(), False),
], ids=["vmf", "gaussian", "released"])  # fmt: skip
def test_only_latents_that_are_drawn_learn_a_reward_of_their_own(
    rl_world: Path, tmp_path: Path, opening: str, policy: LatentPolicy, learns: bool
) -> None:
    # START, four latents and a forced END: with everything but the head frozen, latents are all that can change
    module = make_module(
        direction, backbone=opening, latent_policy=policy, num_rollouts=16, batch_size=1,
        generation_batch_size=1, max_new_tokens=6, span_budget="fixed", span_latents=4, kl_weight=0.0,
        freeze=["vision", "merger", "llm"], learning_rate=6e-3,
    )  # fmt: skip
    trainer = make_trainer(tmp_path, max_steps=24 if learns else 16, gradient_clip_val=1.0)
    trainer.fit(module, make_data(rl_world))
    rewards = [row["reward/toy"] for row in module.rows]
    gain = sum(rewards[-4:]) / 4 - sum(rewards[:4]) / 4
    assert (gain > 0.3) if learns else (abs(gain) < 0.1)


def test_without_a_latent_term_a_head_alone_is_nothing_to_train(opening: str) -> None:
    options = {"backbone": opening, "freeze": ["vision", "merger", "llm"]}
    with pytest.raises(ConfigError, match=r"DeterministicLatents.*no latent term"):
        make_module(latent_policy=DeterministicLatents(), **options).configure_model()
    with pytest.raises(ConfigError, match=r"latent_weight=0\.0"):
        make_module(latent_weight=0.0, **options).configure_model()


# ------------------------------------------------------------------ the model that samples, the reference


def digest(module: LADAPOModule) -> str:
    state = module.reasoner.state_dict()
    return sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_rollouts_are_sampled_from_the_weights_of_the_last_update(rl_world: Path, tmp_path: Path, opening: str) -> None:
    events: list[tuple[str, str]] = []

    class Watched(Recorder):
        def after_sharding(self) -> None:
            super().after_sharding()
            answer = self.sampler.sample_groups

            def watched(prompts: Any) -> Any:
                events.append(("sampled", digest(self)))
                return answer(prompts)

            self.sampler.sample_groups = watched  # type: ignore[method-assign]

        def on_train_batch_end(self, *args: Any) -> None:
            events.append(("trained", digest(self)))

    module = Watched(reward=only(parity), **nested({**QUICK, "backbone": opening, "num_minibatches": 2}))
    # epochs end between and with rollout batches, and validation comes in between
    data = make_data(rl_world, val=str(rl_world / "test.jsonl"))
    trainer = make_trainer(tmp_path, max_steps=10, limit_train_batches=4, limit_val_batches=1, num_sanity_val_steps=0)
    trainer.fit(module, data)
    assert [name for name, _ in events] == ["sampled", "trained", "trained"] * 5
    states = [state for _, state in events]
    assert all(states[place] == states[place - 1] for place in range(3, 15, 3))
    assert len(set(states)) == 11  # the start and ten updates


def test_the_reference_is_the_start_and_stays_so(rl_world: Path, tmp_path: Path, opening: str) -> None:
    module = make_module(backbone=opening)
    module.configure_model()
    start = weights(module)
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.fit(module, make_data(rl_world))
    reference = module.sampler.models.reference
    own = dict(module.reasoner.named_parameters())
    assert not reference.training
    for name, parameter in reference.named_parameters():
        assert not parameter.requires_grad
        assert torch.equal(parameter, start[name])
        # what is frozen is there once
        assert (parameter.data_ptr() == own[name].data_ptr()) != own[name].requires_grad
    kl = [row["train/kl"] for row in module.rows]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert min(kl[1:]) > 1e-5
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert state["state_dict"].keys() == {f"reasoner.{name}" for name in module.reasoner.state_dict()}
    batch, scores = module.seen[-1]
    gap = torch.where(batch.rollout.chosen_mask, batch.reference_log_probs - scores.log_probs, 0.0)
    assert kl[2] == pytest.approx(float((gap.exp() - gap - 1).sum() / batch.rollout.chosen_mask.sum()), rel=1e-5)

    module = make_module(backbone=opening, kl_weight=0.0)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    assert module.sampler.models.reference is None
    assert module.seen[0][0].reference_log_probs is None
    assert module.rows[0]["train/kl"] == 0.0


def test_with_lora_the_reference_is_the_model_without_adapters(rl_world: Path, tmp_path: Path, opening: str) -> None:
    module = make_module(backbone=opening, lora_rank=4)
    make_trainer(tmp_path, max_steps=3).fit(module, make_data(rl_world))
    assert module.sampler.models.reference is None
    kl = [row["train/kl"] for row in module.rows]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert min(kl[1:]) > 1e-6
    batch, scores = module.seen[-1]
    start = LatentReasoner.from_pretrained(opening)
    with torch.no_grad():
        wanted = start.score(batch.prompt, batch.rollout)
    assert_same_but_rounding(batch.reference_log_probs, wanted)
    assert (scores.log_probs - wanted).abs().max() > 1e-3
    module.export(tmp_path / "out")
    exported = LatentReasoner.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        trained = module.reasoner.eval().score(batch.prompt, batch.rollout)
        assert_same_but_rounding(exported.score(batch.prompt, batch.rollout), trained)


def test_adapters_of_a_checkpoint_are_part_of_the_reference(rl_world: Path, tmp_path: Path, opening: str) -> None:
    module = make_module(backbone=opening, lora_rank=4)
    callbacks = [ModelCheckpoint(dirpath=tmp_path, save_last=True)]
    make_trainer(tmp_path, max_steps=1, callbacks=callbacks, enable_checkpointing=True).fit(module, make_data(rl_world))
    module.export(tmp_path / "out")
    merged = LatentReasoner.from_pretrained(tmp_path / "out").state_dict()
    other = make_module(lora_rank=2, init_from=str(tmp_path / "last.ckpt"))
    other.configure_model()
    wrapped = other.reasoner.state_dict()
    frozen = {name.replace(".token_adapter", "").replace(".base_layer", ""): wrapped[name] for name in wrapped}
    assert all(torch.equal(frozen[name], weight) for name, weight in merged.items())
    make_trainer(tmp_path, max_steps=1).fit(other, make_data(rl_world))
    assert other.rows[0]["train/kl"] == pytest.approx(0.0, abs=1e-6)  # new adapters, which change nothing yet


def test_validation_accuracy_is_a_rate(rl_world: Path, tmp_path: Path, opening: str) -> None:
    def accuracy(inputs: RewardInputs) -> Tensor:
        return torch.tensor([1.0, -1.0, 0.0, float("nan")])[: len(inputs)]

    reward = CompositeReward({"accuracy": accuracy}, {"accuracy": 1.0})
    module = Recorder(reward=reward, backbone=opening, **nested(QUICK))
    data = make_data(rl_world, val=str(rl_world / "test.jsonl"), batch_size=4)
    (logged,) = make_trainer(tmp_path).validate(module, data, verbose=False)
    assert logged["val/accuracy"] == pytest.approx(1 / 3)  # -1, what repetition is charged, is not right either
    assert logged["val/reward"] == pytest.approx(0.0)


@pytest.mark.parametrize(("budget", "latents"), [("loose", 2), ("fixed", 0), ("fixed", 20)])
def test_rewards_are_told_the_complete_spans_of_the_rollout(
    rl_world: Path, tmp_path: Path, opening: str, budget: str, latents: int
) -> None:
    seen: list[RewardInputs] = []

    def reward(inputs: RewardInputs) -> Tensor:
        seen.append(inputs)
        return torch.arange(len(inputs)).remainder(2).float()

    module = make_module(reward, backbone=opening, span_budget=budget, span_latents=latents)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    counts = [count for inputs in seen for count in inputs.span_counts.tolist()]
    texts = [text for inputs in seen for text in inputs.responses]
    # Nothing that a random model writes in ordinary tokens looks like a marker.
    complete = re.compile(r"<\|latent_start\|>(?:<\|latent\|>)*<\|latent_end\|>")
    assert counts == [len(complete.findall(text)) for text in texts]
    assert sum(text.count("<|latent_start|>") for text in texts) > 0
    assert (sum(counts) > 0) == (latents < 20)  # decoding ends inside a span of 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"span_budget": "loose", "span_latents": 0}, "at least 1 latent"),
        ({"span_budget": "looose"}, "looose"),
        ({"seed": 2**31}, "seed"),
    ],
)
def test_settings_are_refused_before_anything_is_loaded(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LADAPOModule(**nested(wrong))


def test_init_from_takes_an_sft_run_its_export_or_its_checkpoint(rl_world: Path, tmp_path: Path, opening: str) -> None:
    sft = LatentSFTModule(backbone=opening, learning_rate=1e-3)
    run = tmp_path / "run"
    data = VideoHintDataModule(
        train=str(rl_world / "train.jsonl"), batch_size=2, num_workers=0, system_prompt=str(rl_world / "prompt.txt"),
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    callbacks = [HuggingFaceExport(), ModelCheckpoint(dirpath=run / "checkpoints", save_last=True)]
    make_trainer(run, callbacks=callbacks, enable_checkpointing=True).fit(sft, data)
    trained = {name: value.detach() for name, value in sft.reasoner.named_parameters()}
    for start in (run, run / "huggingface", run / "checkpoints" / "last.ckpt"):
        module = make_module(backbone=opening, init_from=str(start))
        module.configure_model()
        for reasoner in (module.reasoner, module.sampler.models.reference):
            assert all(torch.equal(trained[name], value) for name, value in reasoner.named_parameters()), start
    # a Lightning checkpoint of reinforcement learning is a start as well
    module = make_module(init_from=str(run), kl_weight=0.0)
    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[HuggingFaceExport()])
    trainer.fit(module, make_data(rl_world))
    trainer.save_checkpoint(tmp_path / "rl.ckpt")
    for start in (tmp_path / "rl.ckpt", tmp_path / "huggingface"):
        again = make_module(backbone=str(run / "huggingface"), init_from=str(start))
        again.configure_model()
        after = weights(module)
        assert all(torch.equal(after[name], value) for name, value in weights(again).items())
    assert not torch.equal(after["projection_head.projection.0.weight"], trained["projection_head.projection.0.weight"])
    assert LatentReasoner.from_pretrained(tmp_path / "huggingface").settings.force_initial_latent_mode


@pytest.mark.parametrize("freeze", [["vision", "merger"], []], ids=["frozen", "trained"])
def test_the_vision_tower_runs_once_per_prompt_while_it_is_frozen(
    rl_world: Path, tmp_path: Path, opening: str, freeze: Any
) -> None:
    module = make_module(backbone=opening, freeze=freeze, num_epochs=2, num_minibatches=2)
    module.configure_model()
    calls: list[tuple[int, bool]] = []
    for reasoner in (module.reasoner, module.sampler.models.reference):
        reasoner.backbone.vision_tower.register_forward_hook(
            lambda tower, args, kwargs, out: calls.append(
                (len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]), torch.is_grad_enabled())
            ),
            with_kwargs=True,
        )
    make_trainer(tmp_path, max_steps=4).fit(module, make_data(rl_world))  # one rollout batch of two prompts
    patches = sum(len(batch.prompt.pixel_values) for batch, _ in module.seen[:2])
    if freeze:
        assert calls == [(patches // 2, False)] * 2  # each prompt by itself
    else:
        # sampling, then behaviour and reference of every micro-batch, and every update with gradient
        assert sum(count for count, grad in calls if grad) == 2 * patches
        assert sum(count for count, grad in calls if not grad) == 3 * patches
        assert all(batch.vision is None for batch, _ in module.seen)


# ------------------------------------------------------------------ what is logged and written


def test_the_log_of_a_step_is_what_can_be_counted_by_hand(rl_world: Path, tmp_path: Path, opening: str) -> None:
    module = make_module(
        backbone=opening, batch_size=4, num_epochs=2, learning_rate=1e-5, log_samples_every=1, clip_low=0.02,
        clip_high=0.01, latent_clip_low=2e-4, latent_clip_high=1e-4, dual_clip=1.001,
    )  # fmt: skip
    make_trainer(tmp_path, max_steps=2, accumulate_grad_batches=2).fit(module, make_data(rl_world))
    parts = module.seen[2:]  # the second pass over the rollout batch
    row = module.rows[1]

    def gather(pick: Any) -> Tensor:
        return torch.cat([pick(batch, scores).detach().double() for batch, scores in parts])

    mask = [batch.rollout.chosen_mask for batch, _ in parts]
    ratio = gather(lambda b, s: (s.log_probs - b.old_log_probs)[b.rollout.chosen_mask].exp())
    advantage = gather(lambda b, s: b.advantages[:, None].expand_as(s.log_probs)[b.rollout.chosen_mask])
    width = module.reasoner.hidden_size
    latent_ratio = gather(
        lambda b, s: ((s.latent_log_probs - b.old_latent_log_probs)[b.rollout.latent_mask] / width).exp()
    )
    latent_advantage = gather(lambda b, s: b.advantages[:, None].expand_as(s.latent_log_probs)[b.rollout.latent_mask])
    wanted: dict[str, float] = {"train/decisions": sum(int(m.sum()) for m in mask), "train/latents": len(latent_ratio)}
    for prefix, r, a, low, high in (
        ("train/", ratio, advantage, 0.02, 0.01),
        ("train/latent_", latent_ratio, latent_advantage, 2e-4, 1e-4),
    ):
        wanted |= {
            f"{prefix}ratio": r.mean(), f"{prefix}ratio_max": r.max(), f"{prefix}ratio_min": r.min(),
            f"{prefix}clip_high": ((r > 1 + high) & (a > 0)).double().mean(),
            f"{prefix}clip_low": ((r < 1 - low) & (a < 0)).double().mean(),
            f"{prefix}dual_clip": ((r > 1.001) & (a < 0)).double().mean(),
        }  # fmt: skip
    total = parts[0][0].total_tokens
    surrogate = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.98, 1.01))
    surrogate = torch.where(advantage < 0, torch.minimum(surrogate, -1.001 * advantage), surrogate)
    wanted["train/policy_loss"] = surrogate.sum() / total
    assert total == len(ratio) + sum(int((b.rollout.slot_mask & ~b.rollout.chosen_mask).sum()) for b, _ in parts)
    loss = row["train/policy_loss"] + 0.5 * row["train/latent_loss"] + 0.01 * row["train/kl"] * len(ratio) / total
    assert row["train/loss"] == pytest.approx(loss, rel=1e-5)
    words = gather(lambda b, s: s.entropy[b.rollout.chosen_mask & ~b.rollout.slot_mask])
    slots = gather(lambda b, s: s.entropy[b.rollout.chosen_mask & b.rollout.slot_mask])
    wanted |= {"train/entropy": words.mean(), "train/continue_entropy": slots.mean()}
    for name, value in wanted.items():
        assert row[name] == pytest.approx(float(value), rel=1e-4, abs=1e-7), name
    for name in ("clip_high", "clip_low", "dual_clip", "latent_clip_high", "latent_clip_low"):
        assert 0 < row[f"train/{name}"] < 1, name
    assert 0 < row["train/continue_entropy"] < row["train/entropy"] < 7
    trained = sum(int(b.prompt.attention_mask.sum() + b.rollout.response_mask.sum()) for b, _ in parts)
    assert row["train/tokens_per_second"] == pytest.approx(trained / row["train/update_seconds"])
    assert row["train/lr"] == 1e-5

    records = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_bytes().splitlines()]
    assert len(records) == 4 * 4
    assert [record["rollout_batch"] for record in records] == [0] * 16
    rewards = torch.tensor([record["reward"] for record in records])
    response_mask = torch.cat([batch.rollout.response_mask for batch, _ in parts])
    lengths = response_mask.sum(dim=1).double()
    for line in module.rows:  # both steps train on the one rollout batch
        assert line["reward/toy"] == line["reward/total"] == pytest.approx(float(rewards.mean()))
        assert line["reward/std"] == pytest.approx(float(rewards.std(correction=0)))
        assert line["group_std/total"] == pytest.approx(float(rewards.reshape(4, 4).std(dim=1).mean()))
        assert line["advantage_share/toy"] == pytest.approx(1)
        assert line["rollout/tokens"] == lengths.sum()
        assert line["rollout/response_length"] == pytest.approx(float(lengths.mean()))
        assert line["rollout/spans"] == sum(len(b.rollout.span_table) for b, _ in parts) / 16
        assert line["rollout/latents"] == len(latent_ratio) / 16
        assert line["prompts/kept"] == line["prompts/sampled"] == line["rollout/groups"] == 4
        assert line["prompts/dropped_easy"] == line["prompts/dropped_hard"] == line["rollout/failed"] == 0
        assert line["rollout/rounds"] == 1
        assert line["rollout/tokens_per_second"] == line["rollout/tokens"] / line["rollout/seconds"]
    for record in records:
        assert record["reward"] == record["toy"]
        assert record["finish_reason"] in ("eos", "length")
        assert record["answer"] in ("A", "B", "C", "D")
        assert "In which zone" in record["prompt"]
        assert record["id"].startswith("rl.jsonl:")
    groups: dict[int, list[float]] = {}
    for record in records:
        groups.setdefault(record["prompt_index"], []).append(record["advantage"])
    assert sorted(groups) == [0, 1, 2, 3]
    assert all(sum(values) == pytest.approx(0.0, abs=1e-5) for values in groups.values())


def test_filtered_groups_are_counted_by_why(rl_world: Path, tmp_path: Path, opening: str) -> None:
    module = make_module(
        parity, backbone=opening, batch_size=4, filter_key="toy", filter_low=0.3, filter_high=0.7,
        log_samples_every=1, max_rounds=20,
    )  # fmt: skip
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    means: dict[int, list[float]] = {}
    for line in (tmp_path / "rollouts.jsonl").read_bytes().splitlines():
        means.setdefault(json.loads(line)["prompt_index"], []).append(json.loads(line)["toy"])
    rates = [sum(values) / 4 for values in means.values()]
    (row,) = module.rows
    assert row["prompts/sampled"] == len(rates) == 4 * row["rollout/rounds"] > 4
    assert row["prompts/dropped_hard"] == sum(rate <= 0.3 for rate in rates) > 0
    assert row["prompts/dropped_easy"] == sum(rate >= 0.7 for rate in rates) > 0
    assert row["prompts/kept"] == 4 + row["prompts/leftover"] == sum(0.3 < rate < 0.7 for rate in rates)


def test_steps_without_latents_log_none(rl_world: Path, tmp_path: Path) -> None:
    """Lightning would show the last known value again."""
    module = make_module()  # the tiny model opens a span about once in a thousand tokens
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    assert module.rows[0]["train/latents"] == module.rows[0]["train/latent_loss"] == 0.0
    assert math.isnan(module.rows[0]["train/latent_ratio"])
    assert math.isnan(module.rows[0]["train/latent_ratio_min"])
    assert math.isnan(module.rows[0]["train/continue_entropy"])
    assert math.isnan(module.rows[0]["rollout/latent_cosine"])
    assert module.rows[0]["train/loss"] == module.rows[0]["train/loss"]
    text = make_module(latent_policy=DeterministicLatents())
    make_trainer(tmp_path, max_steps=1).fit(text, make_data(rl_world))
    assert not [name for name in text.rows[0] if name.startswith("train/latent_")]


def test_validation_and_test_are_means_over_greedy_answers(rl_world: Path, tmp_path: Path, opening: str) -> None:
    answer = lambda inputs: torch.tensor([float(key in "AB") for key in inputs.answers])  # noqa: E731
    partly = lambda inputs: torch.tensor([1.0, torch.nan, 0.0, 1.0]).repeat(2)[: len(inputs)]  # noqa: E731
    reward = CompositeReward({"accuracy": answer, "partly": partly}, {"accuracy": 0.5, "partly": 0.0})
    checkpoint = ModelCheckpoint(
        dirpath=tmp_path / "checkpoints", monitor="val_accuracy", mode="max", filename="{step}-{val_accuracy:.2f}"
    )
    held_out = [json.loads(line) for line in (rl_world / "test.jsonl").read_text().splitlines()]
    rate = sum(record["letter"] in "AB" for record in held_out) / 4
    module = Recorder(reward=reward, **nested({**QUICK, "backbone": opening, "learning_rate": 1e-4}))
    data = make_data(rl_world, val=str(rl_world / "test.jsonl"), batch_size=4)
    trainer = make_trainer(tmp_path, callbacks=[checkpoint], enable_checkpointing=True, max_steps=4)
    trainer.fit(module, data)
    assert Path(checkpoint.best_model_path).name == f"step=4-val_accuracy={rate:.2f}.ckpt"
    validated = trainer.validate(module, data, verbose=False)[0]
    assert validated["val/accuracy"] == rate
    assert validated["val/reward"] == 0.5 * rate
    assert validated["val/partly"] == pytest.approx(2 / 3)  # unknown rewards count in no mean
    assert validated["val/spans"] >= 1
    assert 1 <= validated["val/response_length"] <= 8
    tested = trainer.test(module, make_data(rl_world, test=str(rl_world / "test.jsonl"), train=None), verbose=False)[0]
    assert {name.replace("test/", "val/"): value for name, value in tested.items() if name != "test/partly"} == {
        name: value for name, value in validated.items() if name != "val/partly"
    }


# ------------------------------------------------------------------ what cannot work


def test_rollouts_without_a_reward_are_counted_and_left_out(rl_world: Path, tmp_path: Path, opening: str) -> None:
    def often(inputs: Any) -> Tensor:
        values = parity(inputs)
        values[::4] = torch.nan
        return values

    module = make_module(often, backbone=opening, log_samples_every=1)
    make_trainer(tmp_path, max_steps=1).fit(module, make_data(rl_world))
    assert module.rows[0]["rollout/failed"] == 2
    ((batch, _),) = module.seen
    assert (~batch.valid).sum() == 2
    decisions = batch.rollout.chosen_mask[batch.valid]
    assert module.rows[0]["train/decisions"] == int(decisions.sum())
    assert batch.total_tokens == int((decisions | batch.rollout.slot_mask[batch.valid]).sum())
    assert not batch.advantages[~batch.valid].any()
    written = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_bytes().splitlines()]
    assert [record["reward"] is None for record in written] == [True, False, False, False] * 2
    with pytest.raises(RolloutError, match=r"2 of 8 rollouts have no reward.*max_failed=0\.2"):
        make_trainer(tmp_path).fit(make_module(often, backbone=opening, max_failed=0.2), make_data(rl_world))
    with pytest.raises(RolloutError, match="8 of 8 rollouts have no reward"):
        make_trainer(tmp_path).fit(make_module(down, backbone=opening), make_data(rl_world))


def test_settings_that_cannot_work_are_named(rl_world: Path, tmp_path: Path) -> None:
    for options, words in (
        ({"num_rollouts": 1}, "num_rollouts"), ({"advantage": "ppo"}, "advantage"), ({"dtype": "float64"}, "float64"),
        ({"generation_batch_size": 0}, "generation_batch_size"), ({"batch_size": 0}, "batch_size"),
        ({"num_minibatches": 3}, "num_minibatches=3"), ({"filter_low": 0.9}, "filter_low"), ({"clip_low": 1.5}, "clip"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            make_module(**options)
    data = make_data(rl_world)
    with pytest.raises(ConfigError, match="filter_key='accuracy' is no reward part; there are total, toy"):
        make_module(filter_key="accuracy")
    with pytest.raises(RolloutError, match="none of 4 prompts"):
        make_trainer(tmp_path).fit(make_module(starts, filter_key="toy", max_rounds=2), data)
    with pytest.raises(ConfigError, match=r"limit_train_batches leaves 3 .*accumulate_grad_batches=2"):
        make_trainer(tmp_path, limit_train_batches=3, accumulate_grad_batches=2).fit(make_module(), data)
    with pytest.raises(ConfigError, match="LatentPredictor"):
        make_trainer(tmp_path).predict(make_module(), data)
    with pytest.raises(ConfigError, match="LatentSFTModule makes none: use LADAPOModule"):
        make_trainer(tmp_path).fit(LatentSFTModule(), data)
    held_out = make_data(rl_world, val=str(rl_world / "test.jsonl"))
    with pytest.raises(ConfigError, match="LatentSFTModule makes none: use LADAPOModule"):
        make_trainer(tmp_path).fit(LatentSFTModule(), held_out)
    for options in ({}, {"val": str(rl_world / "test.jsonl")}):
        sft = VideoHintDataModule(
            train=str(rl_world / "train.jsonl"), num_workers=0, cache_dir=str(tmp_path / "cache"), **options
        )
        with pytest.raises(ConfigError, match=r"LADAPOModule got a SFTBatch .* use it with RolloutPromptDataModule"):
            make_trainer(tmp_path).fit(make_module(), sft)


def test_resuming_with_other_rollout_settings_is_refused(rl_world: Path, tmp_path: Path, opening: str) -> None:
    trainer = make_trainer(tmp_path, max_steps=3)
    trainer.fit(make_module(backbone=opening, num_minibatches=2), make_data(rl_world))
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    path = str(tmp_path / "three.ckpt")
    with pytest.raises(ConfigError, match=r"Resume with the same rollout.batch_size, num_minibatches"):
        make_trainer(tmp_path, max_steps=9).fit(make_module(backbone=opening), make_data(rl_world), ckpt_path=path)
    again, other = make_module(backbone=opening, num_minibatches=2), make_data(rl_world, seed=1)
    with pytest.raises(CheckpointError, match="resume with the same records and seed"):
        make_trainer(tmp_path, max_steps=9).fit(again, other, ckpt_path=path)


@pytest.mark.parametrize("plugin", [
    MixedPrecision("bf16-mixed", "cpu"), HalfPrecision("bf16-true"), DoublePrecision(),
], ids=["bf16-mixed", "bf16-true", "64-true"])  # fmt: skip
def test_the_precision_of_the_trainer_leaves_log_probs_alone(plugin: Any) -> None:
    experience: Any = Experience.__new__(Experience)
    experience.old_log_probs = torch.tensor([[-1.23456789]])
    experience.old_latent_log_probs = torch.tensor([[812.123456789012]], dtype=torch.float64)
    assert plugin.convert_input(experience) is experience
    assert experience.old_log_probs.dtype == torch.float32
    assert experience.old_latent_log_probs.dtype == torch.float64
