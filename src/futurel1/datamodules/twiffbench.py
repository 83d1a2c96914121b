"""TwiFF-Bench: open questions about images, whose answers and reasoning a judge scores."""

from functools import partial

from futurel1.data import RecordSource, open_records
from futurel1.data.benchmarks import parse_twiffbench
from futurel1.data.collate import OnError
from futurel1.data.remote import media_folder
from futurel1.datamodules.prompts import BasePromptDataModule, Paths, PromptStage
from futurel1.errors import ConfigError

__all__ = ["TwiFFBenchDataModule"]

_SUFFIXES = (".parquet", ".arrow")


class TwiFFBenchDataModule(BasePromptDataModule):
    """TwiFF-Bench for `futurel1 test` and `futurel1 predict`: images, the benchmark's instruction, the question.

    Records are Parquet rows with ``question``, ``answer``, ``reasoning`` (or ``cot``) and the embedded
    ``question_images`` and ``reasoning_images``. Each row's `info` holds what a judge is shown: ``question`` (with its
    `<image>` markers), ``answer``, ``reference_reasoning``, ``question_images`` and ``reference_images``;
    :func:`~futurel1.data.benchmarks.read_images` reads the images of the last two.

    Args:
        records: .parquet (or .arrow) file, folder, pattern, address or list of them.
        data_root: folder that no record's path may leave, through `..`, an absolute path or a link; None: no check.
            Embedded images have no path.
        processor: checkpoint folder whose tokenizer and image processor are used; None: the model's own.
        batch_size: prompts per batch and device.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per prompt; longer ones are errors.
        on_error: ``raise``: stop at the first record that cannot be used; ``skip``: leave it out, count it and write it
            to `skipped.jsonl` in the run folder. A benchmark with records left out is not the benchmark.
        num_workers: processes that decode images; 0 decodes in the process that predicts.

    Raises:
        ConfigError: invalid settings.

    Source:
        Future-L1, arXiv 2606.05769, section on TwiFF-Bench and Fig. 11.
    """

    def __init__(
        self,
        records: Paths,
        data_root: str | None = None,
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
        root = media_folder("data_root", self.hparams["data_root"])
        source = open_records(self.hparams["records"], parse=partial(parse_twiffbench, data_root=root))
        for file in source.files:
            if file.path.suffix.lower() not in _SUFFIXES:
                raise ConfigError(
                    f"{file.place}: TwiFF-Bench embeds its images, so its files are {' or '.join(_SUFFIXES)}"
                )
        return source
