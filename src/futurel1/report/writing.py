"""`futurel1 report`: one page that shows what a run learned and what it answered."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from futurel1.errors import ConfigError
from futurel1.files import writable, write_whole
from futurel1.models import LatentReasoner
from futurel1.report.contents import Contents, assemble
from futurel1.report.neighbours import Retrieval
from futurel1.report.pages import report_page
from futurel1.report.plots import panels_of
from futurel1.report.records import RunRecords
from futurel1.report.runs import RunContents
from futurel1.report.scores import Effect, Score, by_intervention
from futurel1.runs import Dtype, load_reasoner

__all__ = ["Report", "report"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a page shows, in numbers.

    Attributes:
        page: the HTML file.
        size: its bytes.
        samples: samples on it.
        answered: samples that the run answered.
        groups: groups of rollouts on it.
        curves: metrics whose curves it draws.
        scores: right answers of all samples that the run answered, by split.
        effects: what interventions on the latents change.
        retrieval: how near spans are to the frames that they should show; None without latents or such frames.
    """

    page: Path
    size: int
    samples: int
    answered: int
    groups: int
    curves: int
    scores: tuple[Score, ...]
    effects: tuple[Effect, ...]
    retrieval: Retrieval | None

    def __str__(self) -> str:
        lines = [
            f"{score.split:<16}{score.right:>5} of {score.total:<5} right  {score.percent:5.1f}%  "
            f"(95% {score.low:.1f} to {score.high:.1f})"
            for score in self.scores
        ]
        lines += [
            f"latents: {effect.name:<7}{effect.right:>5} of {effect.total:<5} right  {effect.percent:5.1f}%  "
            f"({effect.right_to_wrong} right to wrong, {effect.wrong_to_right} wrong to right, "
            f"{effect.changed_text:.0%} of texts changed)"
            for effect in self.effects
        ]
        if self.retrieval is not None:
            found = self.retrieval
            lines.append(
                f"imagined frames: {found.first:.1%} of {found.spans} are nearest to their true frame "
                f"(chance {found.first_chance:.1%}), median rank {found.median_rank:g} of {found.median_candidates:g}"
            )
        shown = [f"{self.samples} of {self.answered} samples", f"{self.groups} groups of rollouts"]
        shown += [f"{self.curves} curves", f"{self.size / 1e6:.1f} MB"]
        return "\n".join([*lines, f"{self.page}  ({', '.join(shown)})"])


def report(
    run: str | Path,
    *,
    interventions: Sequence[str] = (),
    out: str | Path | None = None,
    data: Sequence[str] = (),
    model: str | None = None,
    samples: int = 64,
    neighbours: int = 3,
    thumbnail: int = 192,
    dtype: Dtype = "auto",
    device: str = "auto",
) -> Report:
    """Write a page about a run: its curves and scores, and sample by sample what it saw, imagined and answered.

    The page is one HTML file that needs no network. It shows what the run folder holds: metrics, answers, latents that
    `save_latents` wrote, logged rollouts. The run's records are read once, for their frames.

    Args:
        run: Run folder of `futurel1 predict`, `test` or `fit`.
        interventions: Run folders of the same records with latents replaced; the page switches between their answers.
            Null for those in a folder of `futurel1 diagnose`.
        out: HTML file to write; null for report.html in the run folder.
        data: Files or folders of records in the place of those that the run's config.yaml names.
        model: Model that encodes frames, in the place of the run's; run folder, checkpoint (or its folder) or hub name.
        samples: Most samples (and groups of rollouts) on the page, spread evenly over the records; 0 for all.
        neighbours: Nearest frames shown beside an imagined one, of each kind; 0 loads no model and compares nothing.
        thumbnail: Most pixels of the longer side of a picture.
        dtype: Dtype of the model; auto is bfloat16 on a GPU and float32 on a CPU.
        device: ``cpu``, ``cuda`` or ``auto``.

    Returns:
        The file and the numbers on the page.

    Raises:
        MissingFileError: No such run, or its data or model have gone.
        ConfigError: A run without anything to show, or runs that do not belong together.
        RecordError: Files of the run that contradict each other.
        MediaError: A video or image that cannot be read.
    """
    if min(samples, neighbours) < 0:
        raise ConfigError(f"samples and neighbours count from 0, got {samples} and {neighbours}")
    shown = RunContents(Path(run).expanduser())
    named = [Path(other).expanduser() for other in interventions] or shown.replacements
    others = by_intervention([RunContents(folder) for folder in named])
    if not (shown.predictions or shown.rollouts or shown.curves or shown.diagnosis):
        raise ConfigError(
            f"{run} has no predictions.jsonl, samples.jsonl, rollouts.jsonl or metrics.csv, so nothing to show; "
            "decode with futurel1 predict first"
        )
    contents = assemble(
        shown,
        others,
        RunRecords(shown, list(data)) if shown.predictions else None,
        _encoder_of(shown, model, dtype, device) if shown.predictions and neighbours else None,
        samples=samples,
        neighbours=neighbours,
        thumbnail=thumbnail,
        progress=_progress,
    )
    return _written(shown, contents, Path(out) if out is not None else shown.folder / "report.html")


def _encoder_of(run: RunContents, model: str | None, dtype: Dtype, device: str) -> LatentReasoner | None:
    """The model that encodes frames; None, and a word why, where there is nothing to compare them with."""
    if run.latents is None:
        logger.info("%s has no latents*.safetensors: imagined frames are not compared (save_latents)", run.folder)
        return None
    if run.branches > 1:
        logger.info(
            "%s saved the latents of first branches, and shows those that won the vote: imagined frames are not "
            "compared (num_branches: 1)",
            run.folder,
        )
        return None
    chosen = model or run.model
    if chosen is None:
        raise ConfigError(f"{run.folder}/config.yaml names no model; give --model, or --neighbours 0")
    reasoner = load_reasoner(chosen, dtype=dtype, device=device)
    run.latents.require_width(reasoner.hidden_size)
    return reasoner


def _progress(names: Sequence[str]) -> Iterable[str]:
    return track(names, description="reading frames", console=Console(stderr=True))


def _written(run: RunContents, contents: Contents, page: Path) -> Report:
    found = run.curves
    panels = panels_of(found[1]) if found else []
    data = report_page(run, contents, panels, found[0].resolve().name if found else "")
    with writable(page.parent):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_whole(page, data)
    return Report(
        page=page,
        size=len(data),
        samples=len(contents.samples),
        answered=contents.answered,
        groups=len(contents.groups),
        curves=len(panels),
        scores=tuple(contents.scores),
        effects=tuple(contents.effects),
        retrieval=contents.retrieval,
    )
