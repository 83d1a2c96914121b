"""Decoding over a data set: predictions for `futurel1 predict`, benchmark scores for `futurel1 test`."""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import nn

from futurel1.data import PromptBatch
from futurel1.data.prompts import read_images
from futurel1.errors import ConfigError
from futurel1.metrics import FutureBenchAccuracy, LatentUsage, Throughput, TwiFFBenchScore, comparison_table
from futurel1.metrics.functional import (
    FUTUREBENCH_SPLITS,
    OPTION_LETTERS,
    extract_answer,
    extract_option,
    sanitize_response,
)
from futurel1.models import LatentReasoner, SpanBudget, load_processor
from futurel1.models.decoding import Rollout
from futurel1.models.policies import DeterministicLatents, LatentPolicy
from futurel1.models.transcript import Transcript, transcripts
from futurel1.modules.start import DTYPES, exported_folder
from futurel1.rewards import Judge, ResponseItem

Benchmark = Literal["none", "futurebench", "twiffbench"]


class LatentPredictor(LightningModule):
    """Decodes prompts with a trained reasoner.

    `predict_step` returns one record per prompt: `id`, `response` (spans as `[imagined frame 1: 4 latents]`), `answer`,
    `votes` (share of branches per answer), `spans`, `tokens`, `finish_reason` and `seconds`. `test_step` scores a
    benchmark as well, and at the end prints the paper's rows beside ours.

    Args:
        backbone: checkpoint folder, hub name, or ``tiny``.
        init_from: weights in place of `backbone`'s: a run folder, or its Hugging Face export.
        dtype: dtype of the weights in memory.
        attn_implementation: attention of `transformers` (sdpa, eager, flash_attention_2).
        num_branches: responses per prompt; with more than one the most frequent answer counts (on FutureBench by the
            strict extraction, whatever the protocol).
        max_new_tokens: most tokens of a response; latents count.
        do_sample: draw at random; needed for branches to differ.
        temperature: divides logits before drawing.
        top_p: draw among the most likely tokens that together have this probability.
        span_budget: ``checkpoint``, ``fixed`` (exactly `span_latents`) or ``loose`` (at most `span_latents`).
        span_latents: latents per span for ``fixed`` and ``loose``.
        latent_policy: how latents are drawn.
        seed: seed of the draws.
        benchmark: ``futurebench`` or ``twiffbench`` for `futurel1 test`; the data module has to fit.
        judge: judge of TwiFF-Bench answers.
        name: name of this model in tables.

    Raises:
        ConfigError: settings that contradict each other.
    """

    reasoner: LatentReasoner

    def __init__(
        self,
        backbone: str = "tiny",
        init_from: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        attn_implementation: str = "sdpa",
        num_branches: int = 1,
        max_new_tokens: int = 2048,
        do_sample: bool = False,
        temperature: float = 0.9,
        top_p: float = 0.99,
        span_budget: Literal["checkpoint", "fixed", "loose"] = "checkpoint",
        span_latents: int = 8,
        latent_policy: LatentPolicy | None = None,
        seed: int = 0,
        benchmark: Benchmark = "none",
        judge: Judge | None = None,
        name: str = "ours",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["latent_policy", "judge"])
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
        if num_branches > 1 and not do_sample:
            raise ConfigError(f"num_branches={num_branches} greedy responses would be equal: set do_sample")
        if benchmark == "twiffbench" and judge is None:
            raise ConfigError("benchmark 'twiffbench' needs model.init_args.judge, an OpenAI-compatible server")
        self.policy = latent_policy or DeterministicLatents()
        self.judge = judge
        self.metrics = nn.ModuleDict()
        if benchmark == "futurebench":
            self.metrics["accuracy"] = FutureBenchAccuracy()
        elif benchmark == "twiffbench":
            self.metrics["score"] = TwiFFBenchScore()
        self.metrics["throughput"] = Throughput()

    @cached_property
    def processor(self) -> Any:
        """The processor of the checkpoint, loaded without its weights."""
        return load_processor(exported_folder(self.hparams["backbone"], self.hparams["init_from"]))

    def configure_model(self) -> None:
        """Load the model once."""
        if hasattr(self, "reasoner"):
            return
        self.reasoner = LatentReasoner.from_pretrained(
            exported_folder(self.hparams["backbone"], self.hparams["init_from"]),
            dtype=DTYPES[self.hparams["dtype"]],
            attn_implementation=self.hparams["attn_implementation"],
        )
        if self.reasoner.processor is None:
            raise ConfigError("prediction needs a checkpoint with a tokenizer")
        splits = FUTUREBENCH_SPLITS if self.hparams["benchmark"] == "futurebench" else ()
        self.metrics["usage"] = LatentUsage(self.reasoner.tokens, splits=splits)

    # ------------------------------------------------------------------ steps

    def decode(self, batch: PromptBatch) -> tuple[Rollout, list[Transcript], float]:
        """Decode a batch: the rollout, N transcripts, and the seconds it took."""
        hparams = self.hparams
        kind, latents = hparams["span_budget"], hparams["span_latents"]
        budget = None if kind == "checkpoint" else SpanBudget(kind, latents)
        began = time.perf_counter()
        rollout = self.reasoner.generate(
            batch,
            num_branches=hparams["num_branches"],
            max_new_tokens=hparams["max_new_tokens"],
            do_sample=hparams["do_sample"],
            temperature=hparams["temperature"],
            top_p=hparams["top_p"],
            budget=budget,
            latent_policy=self.policy,
            seed=hparams["seed"],
        )
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        return rollout, transcripts(rollout, self.reasoner.processor.tokenizer), seconds

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Decode and describe every prompt of a batch."""
        _, texts, seconds = self.decode(batch)
        return self._records(batch, texts, seconds)[0]

    def _records(
        self, batch: PromptBatch, texts: Sequence[Transcript], seconds: float
    ) -> tuple[list[dict[str, Any]], list[Transcript]]:
        """One record per prompt, and the response that stands for it."""
        branches = self.hparams["num_branches"]
        records, winners = [], []
        metas = batch.meta or ({},) * len(batch)
        for row, (sample, meta) in enumerate(zip(batch.sample_ids, metas, strict=True)):
            group = texts[row * branches : (row + 1) * branches]
            winner, votes = elect(group, meta.get("options"))
            winners.append(winner)
            records.append(
                {
                    "id": sample,
                    "record_id": meta.get("id"),
                    "response": winner.readable,
                    "answer": next(iter(votes)),
                    "votes": votes,
                    "expected": meta.get("answer"),
                    "spans": list(winner.spans),
                    "tokens": sum(text.tokens for text in group),
                    "finish_reason": winner.finish_reason,
                    "seconds": round(seconds / len(batch), 4),
                }
            )
        return records, winners

    def setup(self, stage: str) -> None:
        """Remove samples that an earlier test in this folder left on other ranks."""
        if stage == "test" and self.global_rank == 0:
            for file in self._folder().glob("samples-rank*.jsonl"):
                file.unlink()
        self._to_judge: list[tuple[dict[str, Any], Mapping[str, Any], str]] = []

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Decode, score and write every prompt of a batch; a judge is asked at the end."""
        rollout, texts, seconds = self.decode(batch)
        records, winners = self._records(batch, texts, seconds)
        metas = batch.meta or ({},) * len(batch)
        throughput: Any = self.metrics["throughput"]
        throughput.update([record["tokens"] for record in records], seconds)
        self._update_usage(rollout, metas)
        if self.hparams["benchmark"] == "futurebench":
            self._score_futurebench(records, texts, metas)
        elif self.hparams["benchmark"] == "twiffbench":
            self._to_judge += [
                (record, meta, winner.text) for record, meta, winner in zip(records, metas, winners, strict=True)
            ]
        self._write_samples(records, "a" if batch_idx else "w")

    def _write_samples(self, records: Sequence[Mapping[str, Any]], mode: str) -> None:
        file = self._folder() / f"samples{f'-rank{self.global_rank}' if self.global_rank else ''}.jsonl"
        with file.open(mode, encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def _score_futurebench(
        self, records: list[dict[str, Any]], texts: Sequence[Transcript], metas: Sequence[Mapping[str, Any]]
    ) -> None:
        branches = self.hparams["num_branches"]
        responses = [texts[row * branches].text for row in range(len(records))]
        if branches > 1:
            responses = [f"<answer>{record['answer']}</answer>" for record in records]
        accuracy: Any = self.metrics["accuracy"]
        accuracy.update(
            responses,
            [meta["answer"] for meta in metas],
            [meta["split"] for meta in metas],
            [meta["options"] for meta in metas],
        )
        for record, response, meta in zip(records, responses, metas, strict=True):
            record["split"] = meta["split"]
            record["paper"] = extract_option(response, "paper")
            record["strict"] = extract_option(response, "strict", options=meta["options"])

    def _judge(self) -> None:
        """Have all TwiFF-Bench responses of this rank scored at once, after they were written."""
        judge: Any = self.judge
        items = [
            ResponseItem(
                question=meta["question"],
                question_images=read_images(meta["question_images"]),
                reference_reasoning=meta["reference_reasoning"],
                reference_images=read_images(meta["reference_images"]),
                ground_truth=meta["answer"],
                reasoning=sanitize_response(text).split("\n<answer>")[0],
                answer=extract_answer(text),
            )
            for _, meta, text in self._to_judge
        ]
        verdicts = judge.score_responses(items)
        score: Any = self.metrics["score"]
        score.update([None if verdict.failed else verdict.value for verdict in verdicts])
        records = [record for record, _, _ in self._to_judge]
        for record, verdict in zip(records, verdicts, strict=True):
            record["score"], record["judge"] = verdict.value, verdict.reason
        self._write_samples(records, "w")

    def _update_usage(self, rollout: Rollout, metas: Sequence[Mapping[str, Any]]) -> None:
        usage: Any = self.metrics["usage"]
        splits = [meta["split"] for meta in metas for _ in range(rollout.num_branches)] if usage.splits else None
        usage.update(
            rollout.responses.masked_fill(~rollout.response_mask, -1),
            rollout.latents,
            rollout.latent_mask,
            rollout.span_ids,
            ended_by_budget(rollout),
            splits,
        )

    def on_test_epoch_end(self) -> None:
        """Log all scores over all ranks; write `results.json`, `results.md` and `results.tex` and print the table."""
        if self.hparams["benchmark"] == "twiffbench":
            self._judge()
        values: dict[str, float] = {}
        metrics: Any = self.metrics
        for metric in metrics.values():
            values |= {f"test/{name}": float(value) for name, value in metric.compute().items()}
            metric.reset()
        self.log_dict(values)
        if self.global_rank != 0:
            return
        folder = self._folder()
        plain = {name.removeprefix("test/"): value for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        (folder / "results.json").write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        benchmark = self.hparams["benchmark"]
        if benchmark != "none":
            label = self.hparams["name"]
            table = comparison_table(plain, benchmark, "markdown", label)
            (folder / "results.md").write_text(table, encoding="utf-8")
            (folder / "results.tex").write_text(comparison_table(plain, benchmark, "latex", label), encoding="utf-8")
            print(table)

    def _folder(self) -> Path:
        folder = Path(self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def answer_of(text: str, options: Mapping[str, str] | None = None) -> str:
    """The answer of a response; "" for none.

    With options it is a letter: for A to D by the strict protocol of FutureBench, for other sets of letters the letter
    itself or the exact text of an option. Without, it is the text in `<answer>`, free of latent and chat tokens.
    """
    if options and set(options) <= set(OPTION_LETTERS):
        return extract_option(text, "strict", options=options)
    answer = extract_answer(sanitize_response(text)).strip()
    if not options:
        return answer
    by_name = {normalised(value): letter for letter, value in options.items()}
    by_name |= {normalised(letter): letter for letter in options}
    return by_name.get(normalised(answer), "")


def normalised(answer: str) -> str:
    """An answer without case, outer blanks and punctuation at its ends."""
    return answer.strip(" \t\n.,;:!?()").casefold()


def vote(texts: Sequence[str], options: Mapping[str, str] | None = None) -> dict[str, float]:
    """Share of responses per answer, most frequent first; no answer comes last, and ties keep their first appearance.

    Args:
        texts: responses of one prompt.
        options: letters and texts of a multiple-choice question.

    Returns:
        Answer, as it was first written, to share; answers that differ in case or outer punctuation only are one.
    """
    answers = [answer_of(text, options) for text in texts]
    first: dict[str, str] = {}
    for answer in answers:
        first.setdefault(normalised(answer), answer)
    counts = Counter(normalised(answer) for answer in answers)
    ranked = sorted(counts.items(), key=lambda item: (item[0] == "", -item[1]))
    return {first[key]: count / len(texts) for key, count in ranked}


def elect(texts: Sequence[Transcript], options: Mapping[str, str] | None = None) -> tuple[Transcript, dict[str, float]]:
    """The response that stands for a prompt, the first one that gave the answer which won, and the votes."""
    votes = vote([text.text for text in texts], options)
    best = normalised(next(iter(votes)))
    return next(text for text in texts if normalised(answer_of(text.text, options)) == best), votes


def ended_by_budget(rollout: Rollout) -> torch.Tensor:
    """(N, M) bool, whether the budget ended span m of each response."""
    table = rollout.span_table
    counts = torch.bincount(table[:, 0], minlength=len(rollout))
    place = torch.arange(len(table), device=table.device) - (counts.cumsum(0) - counts)[table[:, 0]]
    ended = torch.zeros(len(rollout), max(1, int(counts.max())), dtype=torch.bool, device=table.device)
    ended[table[:, 0], place] = table[:, 4].bool()
    return ended
