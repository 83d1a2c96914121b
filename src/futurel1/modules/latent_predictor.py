"""Decoding over a data set: predictions for `futurel1 predict`, benchmark scores for `futurel1 test`."""

import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from futurel1.data import LookAhead, PromptBatch
from futurel1.data.chat import ChatEncoder
from futurel1.data.futures import Future
from futurel1.data.samples import PromptInfo
from futurel1.engines import Decoding, Engine, EngineSettings
from futurel1.errors import BatchError, ConfigError
from futurel1.files import write_whole
from futurel1.full_disk import told_when_full
from futurel1.json_lines import json_line
from futurel1.losses.alignment import hint_features
from futurel1.metrics import LatentUsage, Throughput
from futurel1.metrics.functional import elect_each, expected_answer
from futurel1.models import FutureLatents, LatentBank, LatentReasoner, SpanBudget, load_processor
from futurel1.models.decoding import PromptSource
from futurel1.models.decoding.rollout import Rollout, ended_by_budget
from futurel1.models.interventions import (
    BANK_FILES,
    WITH_BANK,
    WITH_FUTURE,
    Intervention,
    LatentIntervention,
    make_intervention,
)
from futurel1.models.policies import DeterministicLatents, LatentPolicy
from futurel1.models.transcript import Transcript, transcripts
from futurel1.modules.lazy_reasoner import LazyReasonerModule
from futurel1.modules.scorers import SCORERS
from futurel1.modules.settings import settings_of
from futurel1.recipes import keep_recipe, object_of
from futurel1.rewards import Judge
from futurel1.rollout import SamplingSettings
from futurel1.runs import DTYPES, find_start

LATENT_PARTS = "latents.parts"
"""Subfolder of the run folder for the latents of each batch, until the run ends."""


class LatentPredictor(LazyReasonerModule):
    """Decodes prompts with a trained reasoner.

    `predict_step` returns one record per prompt: `id` (file and number), `record_id` (the record's own `id`),
    `response` (spans as `[imagined frame 1: 4 latents]`), `answer`, `votes` (share of branches per answer), `expected`,
    `spans`, `tokens`, `finish_reason` and `seconds`; of records with a field `counterfactual` also that future's answer
    as `counterfactual`, and under ``oracle`` and ``swap`` also `own_latents`, how many latents stayed the model's own
    because no frame belongs to them. `test_step` also scores a benchmark, and prints our row below the paper's
    at the end.

    If the loader is a :class:`futurel1.data.LookAhead`, as those of our data modules are, all its prompts wait in one
    queue: those of the next batches are decoded beside the last ones of a batch. The time of a step is then that of its
    batch and of what it decoded ahead, and only the mean over many records is the time of one.

    Args:
        backbone: checkpoint folder, hub name, or ``tiny``; from Python also a loaded :class:`LatentReasoner`.
        init_from: weights instead of `backbone`'s: a run folder, its Hugging Face export, or a Trainer's checkpoint.
        dtype: dtype of the weights in memory.
        attn_implementation: attention of `transformers` (sdpa, eager, flash_attention_2).
        num_branches: responses per prompt; with several, the most frequent answer counts (on FutureBench by the strict
            extraction, for every protocol).
        do_sample: sample tokens at random, which several branches need; False: greedy, ignoring `temperature` and
            `top_p`.
        sampling: how responses are sampled; its seed also seeds the intervention ``noise``.
        latent_policy: how latents are sampled.
        benchmark: ``futurebench`` or ``twiffbench`` for `futurel1 test`; the data module has to match.
        judge: judge of TwiFF-Bench answers.
        name: name of this model in tables.
        intervention: what replaces the model's latents, to test whether it uses them: ``none``: nothing; ``zero``:
            zeros; ``mean``: the mean latent of `latent_bank`; ``noise``: Gaussian noise with the bank's mean and
            standard deviations; ``other``: the bank's latents of a sample of another video; ``oracle``: features
            of the record's true future frames, made as the targets of supervised training are; ``swap``: those of the
            other future in its field `counterfactual`. ``markers`` removes latents and keeps START and END, overriding
            `sampling.span_budget`.
        latent_bank: `latents.safetensors` of an earlier run, or that run's folder; required for ``mean``, ``noise`` and
            ``other``, and allowed only for them.
        save_latents: save the latents fed to the first branch of every prompt to `latents.safetensors` in the run
            folder when a test or prediction ends; ranks above 0 write `latents-rank1.safetensors` and so on. Until then
            `latents.parts` contains one file per batch, so a killed prediction loses none when it continues.
        engine: what answers in the place of this process: :class:`~futurel1.engines.Server`, for a model without
            latents; then only the processor of `backbone` or `init_from` is loaded.

    Raises:
        ConfigError: settings that contradict each other.
    """

    _loader: LookAhead[PromptBatch] | None
    _decoded: Iterator[tuple[tuple[str, ...], Rollout]] | None

    def __init__(
        self,
        backbone: str | LatentReasoner = "tiny",
        init_from: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        attn_implementation: str = "sdpa",
        num_branches: int = 1,
        do_sample: bool = False,
        sampling: SamplingSettings = SamplingSettings(),  # noqa: B008 (frozen)
        latent_policy: LatentPolicy | None = None,
        benchmark: str = "none",
        judge: Judge | None = None,
        name: str = "ours",
        intervention: Intervention = "none",
        latent_bank: str | None = None,
        save_latents: bool = False,
        engine: EngineSettings | None = None,
    ) -> None:
        super().__init__()
        backbone = self.take(backbone)
        self.save_hyperparameters(ignore=["latent_policy", "judge", "engine"])
        latent_policy = object_of(LatentPolicy, "latent_policy", latent_policy)
        judge = object_of(Judge, "judge", judge)
        self.engine: EngineSettings | None = object_of(EngineSettings, "engine", engine)
        keep_recipe(self.hparams, "latent_policy", latent_policy)
        keep_recipe(self.hparams, "judge", judge)
        keep_recipe(self.hparams, "engine", self.engine)
        self.sampling = settings_of(self.hparams, "sampling", sampling, SamplingSettings)
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
        if num_branches > 1 and not do_sample:
            raise ConfigError(f"num_branches={num_branches} greedy responses would be equal: set do_sample")
        if benchmark not in SCORERS:
            raise ConfigError(f"benchmark must be one of {', '.join(SCORERS)}, got {benchmark!r}")
        if intervention not in get_args(Intervention):
            raise ConfigError(f"intervention must be one of {get_args(Intervention)}, got {intervention!r}")
        if (intervention in WITH_BANK) != (latent_bank is not None):
            raise ConfigError(
                f"latent_bank belongs to the interventions {', '.join(WITH_BANK)}, and they need one (a run's "
                f"latents.safetensors, written with save_latents); got intervention={intervention!r} and "
                f"latent_bank={latent_bank!r}"
            )
        if self.engine is not None and (latent_policy or intervention != "none" or save_latents):
            raise ConfigError(
                "latent_policy, intervention and save_latents need the model in this process: leave them out, or engine"
            )
        self._clock = time.perf_counter()
        self.policy = latent_policy or DeterministicLatents()
        self._intervention: LatentIntervention | None = None
        self._begin_queue(None, 0)
        self.scorer = SCORERS[benchmark](judge, voted=num_branches > 1)
        self.metrics = nn.ModuleDict({**self.scorer.metrics(), "throughput": Throughput()})

    @cached_property
    def processor(self) -> Any:
        """The processor of the checkpoint, loaded without its weights."""
        if self._given:
            return self._given[0].processor
        return load_processor(find_start(self.hparams["backbone"], self.hparams["init_from"]).folder)

    def configure_model(self) -> None:
        """Load the model once, unless an engine has it."""
        if hasattr(self, "reasoner") or self.engine is not None:
            return
        path = self.hparams["latent_bank"]
        bank = None if path is None else LatentBank.load(path)
        self._intervention = make_intervention(self.hparams["intervention"], bank, self.sampling.seed)
        start = find_start(self.hparams["backbone"], self.hparams["init_from"])
        self.reasoner = self.given_reasoner() or start.load(
            dtype=DTYPES[self.hparams["dtype"]],
            attn_implementation=self.hparams["attn_implementation"],
        )
        if self.reasoner.processor is None:
            raise ConfigError("prediction needs a checkpoint with a tokenizer")
        if bank is not None:
            bank.require_width(self.reasoner.hidden_size)
        self.metrics["usage"] = LatentUsage(self.reasoner.tokens, splits=self.scorer.splits)

    @property
    def future(self) -> Future | None:
        """The future whose frames prompts have to carry; None: they carry none."""
        futures: dict[str, Future] = {"oracle": "true", "swap": "counterfactual"}
        return futures.get(self.hparams["intervention"])

    def make_engine(self, encoder: ChatEncoder) -> Engine[Any] | None:
        """What answers while prompts are loaded; None if this module decodes.

        Args:
            encoder: the encoder of the data module.
        """
        if self.engine is None:
            return None
        hparams = self.hparams
        decoding = Decoding(self.sampling, hparams["num_branches"], hparams["do_sample"])
        return self.engine.engine(hparams["init_from"] or hparams["backbone"], encoder, decoding)

    # ------------------------------------------------------------------ steps

    def decode(self, batch: PromptBatch) -> tuple[Rollout | None, list[Transcript], float]:
        """Decode a batch, and begin with the next ones; returns the rollout, N transcripts and the seconds it took.

        A batch that an engine has answered has no rollout, and took the time since the one before.
        """
        if batch.responses is not None:
            before, self._clock = self._clock, time.perf_counter()
            return None, batch.responses.flat(), self._clock - before
        began = time.perf_counter()
        rollout = self._rollout(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        return rollout, transcripts(rollout, self.reasoner.tokenizer), seconds

    def _rollout(self, batch: PromptBatch) -> Rollout:
        """The batch's rollout, out of the queue that the loader feeds."""
        if self._loader is None:
            return next(self._rollouts([batch], len(batch)))[1]
        if self._decoded is None:
            batches = map(self._as_given, self._loader.ahead(self._num_batches))
            self._decoded = self._rollouts(batches, self._loader.batch_size or len(batch))
        for names, rollout in self._decoded:
            if names == batch.sample_ids:  # a step that decoded nothing leaves its rollout in the queue
                return rollout
        raise BatchError(f"the prompts {', '.join(batch.sample_ids)} were not read from the loader of this loop")

    def _rollouts(self, batches: Iterable[PromptBatch], slots: int) -> Iterator[tuple[tuple[str, ...], Rollout]]:
        """Sample ids and rollout of every batch; all prompts are decoded in one queue."""
        hparams, names = self.hparams, deque[tuple[str, ...]]()
        arguments = self.sampling.arguments()
        arguments["slots"] = self.sampling.slots or slots
        if hparams["intervention"] == "markers":
            arguments["budget"] = SpanBudget.fixed(0)

        if hparams["intervention"] in WITH_FUTURE:
            self._intervention = FutureLatents(hparams["intervention"], {})

        def sources() -> Iterator[PromptSource]:
            for batch in batches:
                names.append(batch.sample_ids)
                if isinstance(
                    self._intervention, FutureLatents
                ):  # with one, a batch is decoded before the next is read
                    self._intervention.features = self._future_features(batch)
                yield PromptSource(batch, self.sampling.seed)

        for rollout in self.reasoner.generate_each(
            sources(), num_branches=hparams["num_branches"], do_sample=hparams["do_sample"],
            latent_policy=self.policy, intervention=self._intervention, **arguments,
        ):  # fmt: skip
            yield names.popleft(), rollout

    def _as_given(self, batch: PromptBatch) -> PromptBatch:
        """The batch as the loop gives it to a step."""
        given: PromptBatch = self.trainer.strategy.batch_to_device(self.trainer.precision_plugin.convert_input(batch))
        return given

    def _begin_queue(self, loader: Any, num_batches: float) -> None:
        """Begin an empty queue for a loop that takes so many batches of a loader."""
        self._loader = loader if isinstance(loader, LookAhead) else None
        self._num_batches = num_batches
        self._decoded = None

    def on_predict_start(self) -> None:
        """Let the loader feed the queue."""
        self._begin_queue(self.trainer.predict_dataloaders, self.trainer.num_predict_batches[0])

    def on_test_start(self) -> None:
        """Let the loader feed the queue."""
        self._begin_queue(self.trainer.test_dataloaders, self.trainer.num_test_batches[0])

    def _future_features(self, batch: PromptBatch) -> dict[str, list[Tensor]]:
        """By sample id, the features of a batch's future frames."""
        if batch.hint_pixel_values is None or batch.hint_grid_thw is None or not batch.sample_ids:
            raise ConfigError(
                f"intervention={self.hparams['intervention']} needs prompts with sample_ids and future frames; those "
                "of a data module have them"
            )
        features = iter(hint_features(self.reasoner, batch.hint_pixel_values, batch.hint_grid_thw))
        counts = zip(batch.sample_ids, batch.hint_counts, strict=True)
        return {name: list(islice(features, count)) for name, count in counts}

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Decode and describe every prompt of a batch."""
        rollout, texts, seconds = self.decode(batch)
        if rollout is not None:
            self._keep_latents(batch, rollout)
        return self._records(batch, texts, seconds)[0]

    def _records(
        self, batch: PromptBatch, texts: Sequence[Transcript], seconds: float
    ) -> tuple[list[dict[str, Any]], list[Transcript]]:
        """One record per prompt, and the prompt's elected response."""
        branches = self.hparams["num_branches"]
        records, winners = [], []
        infos = batch.info or (PromptInfo(),) * len(batch)
        elected = elect_each([text.text for text in texts], branches, [info.options for info in infos])
        for prompt, (sample, info, (row, votes)) in enumerate(zip(batch.sample_ids, infos, elected, strict=True)):
            group = texts[prompt * branches : (prompt + 1) * branches]
            winner = texts[row]
            winners.append(winner)
            records.append(
                {
                    "id": sample,
                    "record_id": info.id,
                    "response": winner.readable,
                    "answer": next(iter(votes)),
                    "votes": votes,
                    "expected": expected_answer(info.answer, info.options),
                    "spans": list(winner.spans),
                    "tokens": sum(text.tokens for text in group),
                    "finish_reason": winner.finish_reason,
                    "seconds": round(seconds / len(batch), 4),
                }
            )
            if info.counterfactual is not None:
                records[-1]["counterfactual"] = expected_answer(info.counterfactual, info.options)
            if isinstance(self._intervention, FutureLatents):
                records[-1]["own_latents"] = int(self._intervention.kept[row])
        return records, winners

    def setup(self, stage: str) -> None:
        """Remove files of an earlier run in this folder, except latents of predictions that continue."""
        folder = self._folder()
        going_on = stage == "predict" and any(file.stat().st_size for file in folder.glob("predictions*.jsonl"))
        if going_on:
            # If nothing is left to decode, no other hook is called.
            self._save_latents()
        elif self.global_rank == 0:
            stale = list(folder.glob("samples-rank*.jsonl")) if stage == "test" else []
            if self.hparams["save_latents"]:
                stale += [*folder.glob(BANK_FILES), *folder.glob(f"{LATENT_PARTS}/*")]
            for file in stale:
                file.unlink()
        self.scorer.begin()
        self._clock = time.perf_counter()

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Decode, score and write every prompt of a batch; a judge scores only at the end."""
        rollout, texts, seconds = self.decode(batch)
        records, winners = self._records(batch, texts, seconds)
        infos = batch.info or (PromptInfo(),) * len(batch)
        throughput: Any = self.metrics["throughput"]
        throughput.update([record["tokens"] for record in records], seconds)
        if rollout is not None:
            self._keep_latents(batch, rollout)
            self._update_usage(rollout, infos)
        self.scorer.score(dict(self.metrics.items()), records, winners, infos)
        self._write_samples(records, "a" if batch_idx else "w")

    # ------------------------------------------------------------------ latents

    def _keep_latents(self, batch: PromptBatch, rollout: Rollout) -> None:
        """Write the latents of a batch's first branches to one file."""
        if not self.hparams["save_latents"]:
            return
        if not batch.sample_ids:
            raise ConfigError("save_latents needs prompts with sample_ids; those of a data module have them")
        latents, counts = rollout.latents.cpu(), rollout.latent_mask.sum(dim=1).tolist()
        firsts = range(0, len(rollout), rollout.num_branches)
        # A sampler that pads its last batch may repeat a sample.
        own = {name: latents[row, : counts[row]] for name, row in zip(batch.sample_ids, firsts, strict=True)}
        sources = dict(zip(batch.sample_ids, batch.sources, strict=True)) if batch.sources else None
        folder = self._folder() / LATENT_PARTS
        number = len(list(folder.glob(f"{self.global_rank}-*.safetensors")))
        bank = LatentBank.from_responses(
            tuple(own), tuple(own.values()), None if sources is None else tuple(sources.values())
        )
        bank.save(folder / f"{self.global_rank}-{number:08d}.safetensors")

    def _save_latents(self) -> None:
        """Merge this rank's parts, and parts of ranks that only an earlier session of the run had.

        Latents that an earlier session of a prediction saved are kept.
        """
        if not self.hparams["save_latents"]:
            return
        folder, rank, ranks = self._folder(), self.global_rank, self.trainer.world_size
        file = folder / f"latents{f'-rank{rank}' if rank else ''}.safetensors"
        every = sorted((folder / LATENT_PARTS).glob("*.safetensors"))
        parts = [part for part in every if int(part.name.split("-")[0]) % ranks == rank]
        if parts:
            before = [file] if file.is_file() else []
            LatentBank.merge([LatentBank.load(part) for part in [*before, *parts]]).save(file)
        for part in parts:
            part.unlink()
        with suppress(OSError):  # the folder does not exist, or still has other ranks' parts
            (folder / LATENT_PARTS).rmdir()

    def on_predict_epoch_end(self) -> None:
        """Save the latents."""
        self._begin_queue(None, 0)
        self._save_latents()

    # ------------------------------------------------------------------ benchmarks

    def _write_samples(self, records: Sequence[Mapping[str, Any]], mode: str) -> None:
        file = self._folder() / f"samples{f'-rank{self.global_rank}' if self.global_rank else ''}.jsonl"
        with (
            told_when_full(file, "earlier lines are whole; free some, and test again"),
            file.open(f"{mode}b") as stream,
        ):
            stream.writelines(map(json_line, records))

    def _update_usage(self, rollout: Rollout, infos: Sequence[PromptInfo]) -> None:
        usage: Any = self.metrics["usage"]
        splits = [info.split for info in infos for _ in range(rollout.num_branches)] if usage.splits else None
        usage.update(
            rollout.responses.masked_fill(~rollout.response_mask, -1),
            rollout.latents,
            rollout.latent_mask,
            rollout.span_ids,
            ended_by_budget(rollout),
            splits,
        )

    def on_test_epoch_end(self) -> None:
        """Log scores over all ranks, write `results.json`, `results.md` and `results.tex`, and print the table."""
        self._begin_queue(None, 0)
        self._save_latents()
        judged = self.scorer.finish(dict(self.metrics.items()))
        if judged:
            self._write_samples(judged, "w")
        values: dict[str, float] = {}
        metrics: Any = self.metrics
        for metric in metrics.values():
            values |= {f"test/{name}": float(value) for name, value in metric.compute().items()}
            metric.reset()
        self.log_reduced(values)
        if self.global_rank != 0:
            return
        folder = self._folder()
        plain = {name.removeprefix("test/"): value for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        write_whole(folder / "results.json", json.dumps(finite, indent=2, allow_nan=False) + "\n")
        table, latex = (self.scorer.table(plain, form, self.hparams["name"]) for form in ("markdown", "latex"))
        if table:
            write_whole(folder / "results.md", table)
            write_whole(folder / "results.tex", latex)
            print(table)

    def _folder(self) -> Path:
        folder = Path(self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
