"""A whole rollout batch of LA-DAPO with its update, against TRL's `GRPOTrainer` on a text model of the same shape.

    python benchmarks/rollouts.py [--lengths 1024:128 3072:128] [--prompts 8] [--mixed] [--profile]

Both Trainers sample a group of responses for every prompt (temperature 0.9, top-p 0.99), reward the groups by the same
function, and take one optimizer step of AdamW on all of them, one group at a time: no reference, no gradient
checkpointing, float32. Weights, prompts and shape are the same: the 4 layers of width 256 and 1,024 words of
`benchmarks/decoding.py`, which has the 8B model's proportions. Responses have the same length, or, with `--mixed`,
exponential ones, a quarter of the longest on average. Each Trainer has a process of its own, so that its peak memory is
its own. Without TRL (`pip install trl`), only this library is measured.
"""

import argparse
import logging
import os
import statistics
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from decoding import shares_of
from futurel1.data.encoded import EncodedSample
from futurel1.data.samples import PromptInfo
from futurel1.losses import PolicyLoss
from futurel1.models import LatentReasoner
from futurel1.models.backbones import Qwen3VLBackbone
from futurel1.models.backbones.tiny import TEXT_WORDS, tiny_model
from futurel1.models.policies import DeterministicLatents
from futurel1.modules import LADAPOModule
from futurel1.rewards import CompositeReward, RewardInputs
from futurel1.rollout import RolloutCollector, RolloutSettings, SamplingSettings
from futurel1.rollout.loading import ExperienceLoader
from meters import add_device_options, forget_peak, in_fresh_process, machine, peak_mb, seconds_now

PEAKEDNESS = 2.0
"""Factor of the random embedding table; a larger one makes all responses of a group the same."""
NEVER = -1e4
"""Logit of a token that is not to be chosen."""
WARM_UP = 1
"""Rollout batches that are not counted."""


@dataclass
class Measured:
    """What the rollout batches of a Trainer took.

    Attributes:
        seconds: of each, with its update.
        sampling: seconds of all that were spent in sampling, the first one included.
        tokens: tokens of the responses of each.
        peak: MB above the process that is ready to begin.
        profile: operations with the largest shares of the processor's time; empty unless asked for.
    """

    seconds: list[float] = field(default_factory=list)
    sampling: float = 0.0
    tokens: list[int] = field(default_factory=list)
    peak: float = 0.0
    profile: str = ""


class Ends:
    """Logits of tokens that end a response, or open a span: never, or an end at each step with one probability.

    Args:
        ends: ids that end a response.
        never: ids that are never chosen.
        probability: of an end at a step, when sampled at `temperature`; 0: never.
        temperature: the temperature.
    """

    def __init__(self, ends: Sequence[int], never: Sequence[int], probability: float, temperature: float = 0.9) -> None:
        self.end, self.never = ends[0], torch.tensor([*ends, *never])
        self.odds = torch.tensor(probability / (1 - probability)).log().item() if probability else None
        self.temperature = temperature

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits of (..., V), changed."""
        logits = logits.index_fill(-1, self.never.to(logits.device), NEVER)
        if self.odds is None:
            return logits
        total = (logits.detach().float() / self.temperature).logsumexp(dim=-1, keepdim=True)
        end = torch.tensor([self.end], device=logits.device)
        return logits.index_copy(-1, end, ((total + self.odds) * self.temperature).to(logits.dtype))


class Ending(LatentReasoner):
    """A reasoner whose responses end as `ends` says."""

    ends: Ends

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the next token."""
        return self.ends(super().logits(hidden))


def make_reasoner(case: dict[str, Any]) -> Ending:
    """4 layers of width 256 with the tiny model's tokenizer and peaked logits."""
    small = LatentReasoner.from_pretrained("tiny@random")
    model = tiny_model(
        hidden_size=256, intermediate_size=768, head_dim=64, max_position_embeddings=case["prompt"] + 4096,
        rope_scaling={"rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True},
    )  # fmt: skip
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(PEAKEDNESS)
    reasoner = Ending(Qwen3VLBackbone(model), small.tokens, small.settings, processor=small.processor)
    probability = 4 / case["tokens"] if case["mixed"] else 0.0
    reasoner.ends = Ends(reasoner.end_token_ids, [small.tokens.start_id], probability)
    return reasoner.to(case["device"], getattr(torch, case["dtype"]))


def make_prompts(tokenizer: Any, case: dict[str, Any], count: int) -> list[str]:
    """Texts of random words, each of which is one token."""
    words = sorted({f" {word}" for word in TEXT_WORDS.split()})
    words = [word for word in words if len(tokenizer.encode(word)) == 1]
    generator = torch.Generator().manual_seed(0)
    choices = torch.randint(len(words), (count, case["prompt"]), generator=generator).tolist()
    return ["".join(words[place] for place in row) for row in choices]


def reward_of(text: str) -> float:
    """1 or 0 by a checksum."""
    return float(zlib.crc32(text.encode()) % 2)


class Prompts:
    """A stream of text prompts; a :class:`futurel1.rollout.PromptSource`."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts

    def take(self, first: int, count: int, rank: int, world_size: int) -> Iterator[tuple[int, EncodedSample]]:
        """Prompts of the indices from `first` on."""
        for index in range(first + rank, first + count, world_size):
            text = self._texts[index]
            ids = torch.tensor(self._tokenizer.encode(text))
            info = PromptInfo(question=text, answer="")
            yield index, EncodedSample(f"prompt {index}", ids, torch.full_like(ids, -100), len(ids), info=info)


class Clock(Callback):
    """Seconds between the ends of optimizer steps."""

    def __init__(self, measured: Measured, device: str) -> None:
        self._measured, self._device, self._last = measured, device, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = seconds_now(self._device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            now = seconds_now(self._device)
            self._measured.seconds.append(now - self._last)
            self._last = now


def run_ours(case: dict[str, Any]) -> Measured:
    """Rollout batches and updates of LADAPOModule."""
    be_quiet()
    measured, batches = Measured(), WARM_UP + case["repeats"]

    def reward(inputs: RewardInputs) -> Tensor:
        measured.tokens.append(int(inputs.response_lengths.sum()))
        return torch.tensor([reward_of(text) for text in inputs.responses], device=inputs.response_lengths.device)

    reasoner = make_reasoner(case)
    tokenizer = reasoner.tokenizer
    module = LADAPOModule(
        reasoner,
        dtype=case["dtype"],
        reward=CompositeReward({"checksum": reward}, {"checksum": 1.0}),
        latent_policy=DeterministicLatents(),
        rollout=RolloutSettings(
            num_rollouts=case["branches"], batch_size=case["prompts"], generation_batch_size=case["slots"],
            filter_key="none",
        ),
        sampling=SamplingSettings(max_new_tokens=case["tokens"], compile=case["compile"]),
        objective=PolicyLoss(kl_weight=0.0),
    )  # fmt: skip
    module.configure_model()
    module.sampler.sample_groups = timed(module.sampler.sample_groups, measured, case["device"])
    prompts = Prompts(tokenizer, make_prompts(tokenizer, case, case["prompts"] * batches))
    collector = RolloutCollector(module.sampler, prompts, module.rollout, micro_batches=case["prompts"])
    idle = forget_peak(case["device"])
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=case["device"], devices=1, max_epochs=1, accumulate_grad_batches=case["prompts"],
            callbacks=[Clock(measured, case["device"])], gradient_clip_val=1.0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        fit: Callable[[], None] = lambda: trainer.fit(module, ExperienceLoader(collector, batches))  # noqa: E731
        if case["profile"]:
            measured.profile = shares_of(fit)
        else:
            fit()
    measured.peak = peak_mb(case["device"]) - idle
    return measured


def run_trl(case: dict[str, Any]) -> Measured:
    """Generations and updates of TRL's GRPOTrainer."""
    be_quiet()
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    measured, batches = Measured(), WARM_UP + case["repeats"]
    reasoner = make_reasoner(case)
    tokenizer, text, ends = reasoner.tokenizer, reasoner.backbone.config.get_text_config(), reasoner.ends
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps")  # fmt: skip
    theta = reasoner.backbone.config.get_text_config().rope_parameters["rope_theta"]
    config = Qwen3Config(
        **{name: getattr(text, name) for name in names}, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.model.load_state_dict(reasoner.backbone.language_model.state_dict())
    model = model.to(case["device"], getattr(torch, case["dtype"]))
    model.lm_head.register_forward_hook(lambda head, given, logits: ends(logits))
    model.generate = timed(model.generate, measured, case["device"])
    texts = make_prompts(tokenizer, case, case["prompts"] * batches)
    del reasoner

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        measured.tokens.append(sum(map(len, completion_ids)))
        return [reward_of(completion) for completion in completions]

    class StepClock(TrainerCallback):
        last = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.last = seconds_now(case["device"])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = seconds_now(case["device"])
            measured.seconds.append(now - self.last)
            self.last = now

    with TemporaryDirectory() as folder:
        settings = GRPOConfig(
            folder, per_device_train_batch_size=case["branches"], gradient_accumulation_steps=case["prompts"],
            num_generations=case["branches"], max_completion_length=case["tokens"], max_steps=batches,
            temperature=0.9, top_p=0.99, top_k=0, beta=0.0, learning_rate=1e-6, lr_scheduler_type="constant",
            weight_decay=0.01, max_grad_norm=1.0, gradient_checkpointing=False, bf16=False,
            use_cpu=case["device"] == "cpu", shuffle_dataset=False, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model, reward, settings, Dataset.from_dict({"prompt": texts}), processing_class=tokenizer,
            callbacks=[StepClock()],
        )  # fmt: skip
        idle = forget_peak(case["device"])
        trainer.train()
    measured.peak = peak_mb(case["device"]) - idle
    return measured


def timed(function: Callable[..., Any], measured: Measured, device: str) -> Callable[..., Any]:
    """The function, whose seconds are added to those of sampling."""

    def call(*arguments: Any, **options: Any) -> Any:
        began = seconds_now(device)
        result = function(*arguments, **options)
        measured.sampling += seconds_now(device) - began
        return result

    return call


def be_quiet() -> None:
    """Without what Trainers say of devices and loaders."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def report(name: str, found: Measured) -> tuple[float, float]:
    """Print a line; returns the seconds of a rollout batch with its update, and its tokens per second."""
    counted, tokens = found.seconds[WARM_UP:], found.tokens[WARM_UP:]
    seconds, spread = statistics.median(counted), max(counted) - min(counted)
    rate = sum(tokens) / sum(counted)
    share = found.sampling / sum(found.seconds)
    print(
        f"  {name:<12}{seconds:>8.2f} s  spread {spread:.2f}  {rate:>7.0f} tokens/s  sampling {share:.0%}"
        f"  peak {found.peak:.0f} MB",
        flush=True,
    )
    return seconds, rate


def parse_lengths(text: str) -> tuple[int, int]:
    """``"1024:128"`` to (1024, 128)."""
    prompt, response = text.split(":")
    return int(prompt), int(response)


def main(args: Sequence[str] | None = None) -> None:
    """Print a table per length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=parse_lengths, nargs="+", default=[(1024, 128), (3072, 128)], metavar="PROMPT:RESPONSE"
    )
    parser.add_argument("--prompts", type=int, default=8, help="groups of a rollout batch")
    parser.add_argument("--branches", type=int, default=8, help="responses of a group")
    parser.add_argument("--slots", type=int, default=8, help="prompts that this library decodes at once")
    parser.add_argument("--repeats", type=int, default=2, help="rollout batches after the first, which warms up")
    parser.add_argument("--mixed", action="store_true", help="exponential lengths of responses")
    parser.add_argument("--compile", action="store_true", help="compile this library's decoding step")
    parser.add_argument("--profile", action="store_true", help="name the operations that take most of this library")
    add_device_options(parser)
    options = parser.parse_args(args)
    print(f"{vars(options)}, {machine(options.device)}")
    common = {name: value for name, value in vars(options).items() if name != "lengths"}
    for prompt, tokens in options.lengths:
        case = {"prompt": prompt, "tokens": tokens, **common, "profile": False}
        print(f"{options.prompts} groups of {options.branches}, prompts of {prompt} tokens, responses of {tokens}")
        ours = in_fresh_process(run_ours, case)
        seconds, rate = report("this", ours)
        if options.profile:
            print(f"  time of this: {in_fresh_process(run_ours, {**case, 'profile': True}).profile}")
        if find_spec("trl") is None:
            print("  TRL is not installed, so there is nothing to compare with: pip install trl")
            continue
        theirs = in_fresh_process(run_trl, case)
        other, other_rate = report("TRL", theirs)
        print(
            f"  this is {other / seconds:.2f} times as fast ({rate / other_rate:.2f} in tokens/s), with "
            f"{ours.peak / theirs.peak:.0%} of the memory"
        )


if __name__ == "__main__":
    main()
