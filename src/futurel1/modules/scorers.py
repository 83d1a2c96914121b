"""Scorers of `futurel1 test`, one per benchmark, with its metrics, record columns and table."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torchmetrics import Metric

from futurel1.data.benchmarks import read_images
from futurel1.data.samples import PromptInfo
from futurel1.errors import ConfigError
from futurel1.metrics import FutureBenchAccuracy, TwiFFBenchScore, comparison_table
from futurel1.metrics.functional import FUTUREBENCH_SPLITS, extract_answer, extract_option, sanitize_response
from futurel1.metrics.published import Benchmark as PublishedBenchmark
from futurel1.models.transcript import Transcript
from futurel1.rewards import Judge, ResponseItem

Record = dict[str, Any]


class Scorer:
    """Scores nothing: `futurel1 test` then only measures use of latents and throughput.

    The scorer of a benchmark derives from this class and is listed in `SCORERS`.

    Args:
        judge: judge of free answers, for benchmarks that need one.
        voted: whether several responses per prompt are decoded, and their vote is scored.
    """

    splits: ClassVar[tuple[str, ...]] = ()
    """Splits of the benchmark, for which use of latents is also reported."""
    published: ClassVar[PublishedBenchmark | None] = None
    """Name of the benchmark's table of published rows, if there is one."""

    def __init__(self, judge: Judge | None = None, voted: bool = False) -> None:
        self.judge = judge
        self.voted = voted

    def metrics(self) -> dict[str, Metric]:
        """The benchmark's metrics by name; the module with the model holds them."""
        return {}

    def begin(self) -> None:
        """Reset the state of an interrupted test."""

    def score(
        self,
        metrics: dict[str, Any],
        records: Sequence[Record],
        responses: Sequence[Transcript],
        infos: Sequence[PromptInfo],
    ) -> None:
        """Score a batch, and add scores to the records.

        Args:
            metrics: the metrics of :meth:`metrics`, on the model's device.
            records: one record per prompt, as `futurel1 predict` writes them.
            responses: the elected response of each prompt.
            infos: answer, options and other metadata of each prompt.
        """

    def finish(self, metrics: dict[str, Any]) -> Sequence[Record]:
        """Score responses that are scored all at once; returns the records that this changed."""
        return ()

    def table(self, values: dict[str, float], form: Any, label: str) -> str:
        """Our row below the published ones, as ``markdown`` or ``latex``; "" without a published table."""
        return "" if self.published is None else comparison_table(values, self.published, form, label)


class FutureBenchScorer(Scorer):
    """FutureBench: accuracy by split and protocol; several responses are voted on, by the strict protocol."""

    splits = FUTUREBENCH_SPLITS
    published = "futurebench"

    def metrics(self) -> dict[str, Metric]:
        """Accuracy."""
        return {"accuracy": FutureBenchAccuracy()}

    def score(
        self,
        metrics: dict[str, Any],
        records: Sequence[Record],
        responses: Sequence[Transcript],
        infos: Sequence[PromptInfo],
    ) -> None:
        """Score a batch; records get `split`, and the letters by both protocols as `paper` and `strict`."""
        texts = [
            f"<answer>{record['answer']}</answer>" if self.voted else response.text
            for record, response in zip(records, responses, strict=True)
        ]
        metrics["accuracy"].update(
            texts,
            [info.answer for info in infos],
            [info.split for info in infos],
            [info.options for info in infos],
        )
        for record, text, info in zip(records, texts, infos, strict=True):
            record["split"] = info.split
            record["paper"] = extract_option(text, "paper")
            record["strict"] = extract_option(text, "strict", options=info.options)


class TwiFFBenchScorer(Scorer):
    """TwiFF-Bench: a judge scores reasoning and answer of all responses at once, when decoding is done.

    Args:
        judge: the judge.
        voted: see :class:`Scorer`; the response that won the vote is judged.

    Raises:
        ConfigError: no judge.
    """

    published = "twiffbench"

    def __init__(self, judge: Judge | None = None, voted: bool = False) -> None:
        super().__init__(judge, voted)
        if judge is None:
            raise ConfigError("benchmark 'twiffbench' needs model.init_args.judge, an OpenAI-compatible server")
        self.begin()

    def begin(self) -> None:
        """Discard responses that wait for the judge."""
        self._waiting: list[tuple[Record, PromptInfo, str]] = []

    def metrics(self) -> dict[str, Metric]:
        """Mean scores."""
        return {"score": TwiFFBenchScore()}

    def score(
        self,
        metrics: dict[str, Any],
        records: Sequence[Record],
        responses: Sequence[Transcript],
        infos: Sequence[PromptInfo],
    ) -> None:
        """Keep a batch for the judge."""
        texts = [response.text for response in responses]
        self._waiting += zip(records, infos, texts, strict=True)

    def finish(self, metrics: dict[str, Any]) -> Sequence[Record]:
        """Have all responses of this rank judged; records get `score`, and the judge's reason as `judge`."""
        judge: Any = self.judge
        items = [
            ResponseItem(
                question=str(info.question),
                question_images=read_images(info.question_images),
                reference_reasoning=str(info.reference_reasoning),
                reference_images=read_images(info.reference_images),
                ground_truth=str(info.answer),
                reasoning=sanitize_response(text).split("\n<answer>")[0],
                answer=extract_answer(text),
            )
            for _, info, text in self._waiting
        ]
        verdicts = judge.score_responses(items)
        metrics["score"].update([None if verdict.failed else verdict.value for verdict in verdicts])
        records = [record for record, _, _ in self._waiting]
        for record, verdict in zip(records, verdicts, strict=True):
            record["score"], record["judge"] = verdict.value, verdict.reason
        self.begin()
        return records


SCORERS: dict[str, type[Scorer]] = {
    "none": Scorer,
    "futurebench": FutureBenchScorer,
    "twiffbench": TwiFFBenchScorer,
}
"""Scorers by the values of `model.init_args.benchmark`."""
