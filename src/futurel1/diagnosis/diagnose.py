"""`futurel1 diagnose`: every instrument that applies to a model, in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from rich.console import Console
from rich.progress import track

from futurel1.diagnosis.decoding import Decoder, future_means, has_future
from futurel1.diagnosis.effects import effect_of
from futurel1.diagnosis.imagining import Change, Imagined, change_of, imagined
from futurel1.diagnosis.probes import LEAST_QUESTIONS, Probe
from futurel1.diagnosis.probing import future_positions, probes_of
from futurel1.diagnosis.results import DESTRUCTIVE, Diagnosis
from futurel1.diagnosis.states import THOUGHTS
from futurel1.diagnosis.verdict import verdict_of
from futurel1.errors import ConfigError, MissingFileError
from futurel1.files import writable, write_whole
from futurel1.models import LatentBank
from futurel1.models.interventions import Intervention
from futurel1.report.runs import DIAGNOSIS_FILE
from futurel1.rollout import SamplingSettings
from futurel1.runs import Dtype, load_reasoner
from futurel1.worlds import write_clips
from futurel1.worlds.belonging import world_of
from futurel1.worlds.storage import CHANGES

__all__ = ["diagnose"]

Item = TypeVar("Item")

PROMPT_SETTINGS = (
    "data_root", "system_prompt", "max_length", "video_fps", "video_max_frames", "video_frame_tokens", "video_backend",
)  # fmt: skip
"""Settings of a run's data that decoding takes over."""


def diagnose(
    run: str,
    *,
    data: Sequence[str] = (),
    out: str | Path | None = None,
    text_only: str | None = None,
    count: int = 100,
    batch_size: int = 16,
    max_new_tokens: int = 512,
    num_workers: int = 2,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Diagnosis:
    """Find out whether a model uses its latents, and whether they follow what it saw.

    The same questions are answered with the model's own latents, with others in their place (zeros, the mean, noise,
    another video's, none, the true future, another future) and about changed videos. Everything goes into one folder;
    a call that was interrupted goes on with the same command.

    Args:
        run: Run folder of a training, checkpoint (or its folder) or hub name of the model.
        data: Files of questions with known answers; null for counterfactual questions if the run learned a world that
            has them, else the run's test or validation records.
        out: Folder to write to; null for diagnosis in the run folder.
        text_only: Model trained without latents on the same data, whose thoughts are probed too; null for none.
        count: Number of counterfactual questions to write for a run on a world that has them.
        batch_size: Questions decoded at once.
        max_new_tokens: Most tokens of a response, latents included.
        num_workers: Processes that read videos.
        dtype: Dtype of the model; auto is bfloat16 on a GPU and float32 on a CPU.
        device: ``cpu``, ``cuda`` or ``auto``.

    Returns:
        The numbers, and what they say.

    Raises:
        MissingFileError: No such model, or no questions.
        ConfigError: Questions without known answers, or a folder with answers to other questions.
        RecordError: A record that cannot be used.
    """
    settings = _config_of(Path(run))
    folder = Path(out) if out is not None else Path(run) / "diagnosis"
    if out is None and not Path(run).is_dir():
        raise ConfigError(f"run={run} is no folder here; name a folder to write to with --out")
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    questions = _questions(settings, list(data), folder, count)
    reasoner = load_reasoner(run, dtype=dtype, device=device)
    given = settings.get("data", {}).get("init_args", {})
    options = {name: given[name] for name in PROMPT_SETTINGS if given.get(name) is not None}
    if folder in Path(questions[0]).parents:  # written here, maybe outside of the run's data
        options.pop("data_root", None)
    options |= {"batch_size": batch_size, "num_workers": num_workers}
    decoder = Decoder(reasoner, run, options, SamplingSettings(max_new_tokens=max_new_tokens))
    other = None
    if text_only is not None:
        other = replace(decoder, reasoner=load_reasoner(text_only, dtype=dtype, device=device), model=text_only)
    found = _Instruments(decoder, folder, questions, other).run(run)
    write_whole(folder / DIAGNOSIS_FILE, json.dumps(found.to_dict(), indent=2) + "\n")
    write_whole(folder / "diagnosis.md", found.markdown())
    write_whole(folder / "diagnosis.txt", f"{found}\n")
    return found


@dataclass(frozen=True)
class _Instruments:
    """The instruments, for one model and one set of questions."""

    decoder: Decoder
    folder: Path
    questions: Sequence[str]
    text_only: Decoder | None

    def run(self, model: str) -> Diagnosis:
        """Answer everything, and compare."""
        base = self.decoder.answer(self.folder, self.questions)
        if any(line.get("expected") is None for line in base):
            raise ConfigError(f"{self.questions[0]}: a question has no known answer; give questions that have one")
        kinds, left_out = self._kinds()
        changed = self._changed_questions() if "swap" in kinds else {}
        answers = {
            kind: self.decoder.answer(self.folder / kind, self.questions, kind, self.folder)
            for kind in _progress(kinds, "replacing latents")
        }
        swapped = answers.pop("swap", None)
        effects = [effect_of("none", base), *(effect_of(kind, base, lines) for kind, lines in answers.items())]
        if swapped is not None:
            controls = {str(kind): lines for kind, lines in answers.items() if kind in DESTRUCTIVE}
            effects.append(effect_of("swap", base, swapped, controls))
        changes: list[Change] = []
        if changed:
            changes = self._changes(base, changed)
        else:
            left_out["input to latent"] = "there are no changed videos beside the questions (futurel1 world)"
        probes = self._probes(changed, left_out) if "zero" in answers else []  # without latents nothing was imagined
        return Diagnosis(
            model=model,
            folder=self.folder,
            questions=tuple(self.questions),
            effects=tuple(effects),
            changes=tuple(changes),
            probes=tuple(probes),
            left_out=left_out,
            verdict=verdict_of(effects, changes, probes),
        )

    def _kinds(self) -> tuple[list[Intervention], dict[str, str]]:
        """The interventions that apply, and why others do not."""
        bank = LatentBank.load(self.folder)
        left_out: dict[str, str] = {}
        kinds: list[Intervention] = list(DESTRUCTIVE)
        if not int(bank.counts.sum()):
            kinds = ["markers"]
            left_out["other replacements"] = "the model emitted no latent at all"
            return kinds, left_out
        if bank.sources is None or len(set(bank.sources)) < 2:
            kinds.remove("other")
            left_out["other"] = "all questions are about one video"
        if has_future(self.questions, "true"):
            kinds.append("oracle")
        else:
            left_out["oracle"] = "not every record has frames of its future (reasoning_image)"
        if has_future(self.questions, "counterfactual"):
            kinds.append("swap")
        else:
            left_out["swap"] = "not every record has another future (counterfactual)"
        return kinds, left_out

    def _changed_questions(self) -> dict[str, list[str]]:
        """Files of the same questions about changed videos, by the change, where they stand beside the questions."""
        files = [Path(name) for name in self.questions]
        beside = {
            change: [str(file.with_name(f"{file.stem}_{change}{file.suffix}")) for file in files] for change in CHANGES
        }
        return {change: names for change, names in beside.items() if all(Path(name).is_file() for name in names)}

    def _changes(self, base: Sequence[Mapping[str, Any]], changed: Mapping[str, Sequence[str]]) -> list[Change]:
        """What each change of the observed video does to the imagined frames."""
        unchanged = self._imagined(self.folder, self.questions, base)
        found = []
        for change, files in _progress(list(changed.items()), "changing videos"):
            answers = self.decoder.answer(self.folder / change, files)
            found.append(change_of(change, unchanged, self._imagined(self.folder / change, files, answers)))
        return found

    def _probes(self, changed: Mapping[str, Sequence[str]], left_out: dict[str, str]) -> list[Probe]:
        """Probes of the questions about all videos, if their records have labels."""
        files = {"unchanged": self.questions, **changed}
        labelled = [future_positions(names) for names in files.values()]
        if not all(labelled):
            left_out["probes"] = "not every record says where things will be (future_positions)"
            return []
        if len(labelled[0] or []) < LEAST_QUESTIONS:
            left_out["probes"] = f"they need at least {LEAST_QUESTIONS} questions"
            return []
        with Console(stderr=True).status("probing ..."):
            probes = probes_of(self.decoder, files, self.folder, self.text_only)
        if self.text_only is not None and THOUGHTS not in {one.name for one in probes}:
            left_out[THOUGHTS] = "its responses hold no thoughts about future frames"
        return probes

    def _imagined(self, folder: Path, questions: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> list[Imagined]:
        """The spans of a run, beside the features of both futures."""
        true, other = (future_means(self.decoder.reasoner, questions, name) for name in ("true", "counterfactual"))
        return imagined(LatentBank.load(folder), answers, list(zip(true, other, strict=True)))


def _progress(items: Sequence[Item], description: str) -> Iterable[Item]:
    return track(items, description=description, console=Console(stderr=True))


# ------------------------------------------------------------------ questions


def _config_of(run: Path) -> Mapping[str, Any]:
    """The configuration of a run; empty for a model without one."""
    file = run / "config.yaml"
    if not file.is_file():
        return {}
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no settings; restore the file that the run wrote")
    return config


def _questions(settings: Mapping[str, Any], data: list[str], folder: Path, count: int) -> list[str]:
    """Files of the questions to ask."""
    if data:
        return data
    own = _own_questions(settings)
    world = world_of(Path(own[0]))
    if world is None or "counterfactual" not in world.splits:
        return own
    files = write_clips(folder / "world", world, {"counterfactual": count}, progress=False)
    return [str(files.counterfactual)]


def _own_questions(settings: Mapping[str, Any]) -> list[str]:
    given = settings.get("data", {}).get("init_args", {})
    for name in ("test", "val", "predict"):
        files = given.get(name)
        if files:
            return [files] if isinstance(files, str) else list(files)
    raise MissingFileError("the run's config.yaml names no test or validation records; name questions with --data")
