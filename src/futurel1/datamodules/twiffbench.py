"""TwiFF-Bench: open questions about images, whose answers and reasoning a judge scores."""

import re
from functools import lru_cache
from importlib.resources import files

from futurel1.data import RecordSource, Sample, Turn, open_records
from futurel1.data.collate import OnError
from futurel1.data.record_fields import RecordFields
from futurel1.data.samples import RawRecord
from futurel1.datamodules.prompts import BasePromptDataModule, Paths, PromptStage
from futurel1.errors import ConfigError

__all__ = ["TwiFFBenchDataModule", "parse_twiffbench", "twiffbench_instruction"]

_REASONING_FIELDS = ("reasoning", "cot")
_SUFFIXES = (".parquet", ".arrow")
_INLINE_ANSWER = re.compile(r"<ans>(.*?)</ans>", re.DOTALL)


@lru_cache(maxsize=1)
def twiffbench_instruction() -> str:
    """The benchmark's instruction, which stands between images and question (paper, Fig. 11)."""
    return (files("futurel1.data") / "templates" / "twiffbench.txt").read_text(encoding="utf-8").strip()


class TwiFFBenchDataModule(BasePromptDataModule):
    """TwiFF-Bench, for `futurel1 test` and `futurel1 predict`: images, the benchmark's instruction, the question.

    Records are Parquet rows with ``question``, ``answer``, ``reasoning`` (or ``cot``) and the embedded
    ``question_images`` and ``reasoning_images``. Each row's `meta` holds what a judge is shown: ``question`` (with its
    `<image>` markers), ``answer``, ``reference_reasoning`` (with `<rimage>` markers), and ``question_images`` and
    ``reference_images``, references from which :func:`~futurel1.data.prompts.read_images` reads the images.

    Args:
        records: .parquet (or .arrow) file, folder or list of them.
        processor: checkpoint folder whose tokenizer and image processor are used; None: the model's own.
        batch_size: prompts per batch and device.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per prompt; longer ones are errors.
        on_error: ``raise``: stop at the first record that cannot be used; ``skip``: leave it out, count it and write it
            to `skipped.jsonl` in the run folder. A benchmark with records left out is not the benchmark.
        num_workers: processes that decode images; 0 decodes in the process that predicts.

    Raises:
        ConfigError: settings that cannot work.

    Source:
        Future-L1, arXiv 2606.05769, section on TwiFF-Bench and Fig. 11.
    """

    def __init__(
        self,
        records: Paths,
        processor: str | None = None,
        batch_size: int = 1,
        system_prompt: str | None = None,
        max_length: int = 16384,
        on_error: OnError = "raise",
        num_workers: int = 2,
    ) -> None:
        super().__init__(
            processor=processor,
            batch_size=batch_size,
            on_error=on_error,
            num_workers=num_workers,
            encoder_options={"system_prompt": system_prompt, "max_length": max_length},
        )
        self.save_hyperparameters()

    def open_source(self, stage: PromptStage) -> RecordSource:
        """Open the benchmark."""
        source = open_records(self.hparams["records"], parse=parse_twiffbench)
        for file in source.files:
            if file.suffix.lower() not in _SUFFIXES:
                raise ConfigError(f"{file}: TwiFF-Bench embeds its images, so its files are {' or '.join(_SUFFIXES)}")
        return source


def parse_twiffbench(record: RawRecord) -> Sample:
    """Turn a TwiFF-Bench record into a prompt: all images, the instruction, a blank line, the question.

    Where `answer` carries the reasoning, as in TwiFF-2.7M, its ``<ans>..</ans>`` is the answer and the rest the
    reference reasoning.

    Args:
        record: the record as stored.

    Raises:
        RecordError: a field is missing or wrong, or a text has another number of markers than of images.
        RecordFileError: an image that is not embedded is missing.
    """
    fields = RecordFields(record.raw, file=record.name, number=record.number, folder=record.folder)
    fields.refuse_misspelt({"question", "answer", *_REASONING_FIELDS, "question_images", "reasoning_images", "system"})
    question = fields.text("question")
    shown = fields.images("question_images", "question image")
    if not shown:
        fields.fail("question_images", fields.values.get("question_images"), "no image", "embed at least one")
    _check_markers(fields, "question", question, "<image>", len(shown))
    text = question.replace("<image>", "").strip()
    if not text:
        fields.fail("question", question, "empty question", "write it after the markers")
    reasoning, answer = _reasoning_and_answer(fields)
    if "<rimage>" not in reasoning:
        reasoning = reasoning.replace("<image>", "<rimage>")
    _check_markers(fields, "reasoning_images", reasoning, "<rimage>", len(fields.images("reasoning_images")))
    place = {"file": str(record.file.absolute()), "record": record.number}
    meta = {
        "id": fields.identity(),
        "question": question,
        "answer": answer,
        "reference_reasoning": reasoning,
        "question_images": {**place, "column": "question_images"},
        "reference_images": {**place, "column": "reasoning_images"},
    }
    asked = Turn("user", (*shown, f"{twiffbench_instruction()}\n\n{text}"), field="question")
    return Sample(fields.id, (*fields.system_turns(), asked), None, meta)


def _reasoning_and_answer(fields: RecordFields) -> tuple[str, str]:
    """Reference reasoning and ground truth, from columns of their own or both from `answer`."""
    answer = fields.text("answer")
    inline = _INLINE_ANSWER.search(answer)
    column = next((name for name in _REASONING_FIELDS if fields.values.get(name)), None)
    if column is not None:
        return fields.text(column), inline[1].strip() if inline else answer
    if inline is None:
        fields.fail(
            _REASONING_FIELDS[0],
            None,
            f"no reference reasoning, the record has {', '.join(fields.keys)}",
            f"the judge compares with it: name its column {' or '.join(_REASONING_FIELDS)}",
        )
    reasoning = _INLINE_ANSWER.sub("", answer).strip()
    return fields.check_text("answer (without <ans>)", reasoning), inline[1].strip()


def _check_markers(fields: RecordFields, field: str, text: str, marker: str, number: int) -> None:
    found = text.count(marker)
    if found not in (0, number):
        fields.fail(field, text, f"{found} {marker} markers for {number} images", "write one for each, or none")
