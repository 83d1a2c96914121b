"""FutureBench: four-option questions about what happens next in a video."""

from functools import partial

from futurel1.data import RecordSource, open_records
from futurel1.data.benchmarks import parse_futurebench
from futurel1.data.collate import OnError
from futurel1.data.remote import media_folder
from futurel1.data.video import VideoBackend
from futurel1.datamodules.prompts import BasePromptDataModule, Paths, PromptStage

__all__ = ["FutureBenchDataModule"]


class FutureBenchDataModule(BasePromptDataModule):
    """FutureBench for `futurel1 test` and `futurel1 predict`: 32 frames of a video, the question and its options.

    Records are ``{id, video_path, question_type, qa: {Question, Options: {A..D}, Answer}}``; a video is a whole file.
    Each row's `info` holds ``id``, ``split`` (the `question_type`), ``question``, ``options`` (letter to text) and
    ``answer`` (a letter).

    Args:
        records: folder that `datasets` saved (`save_to_disk`), or a file, folder, pattern, address or list of them
            (.arrow, .parquet, .json, .jsonl).
        video_root: folder to which `video_path` is relative; None: the folder of the record's file.
        data_root: folder that no record's path may leave, through `..`, an absolute path or a link; None: no check.
        processor: checkpoint folder whose tokenizer and image processor are used; None: the model's own.
        batch_size: prompts per batch and device.
        num_frames: frames taken evenly over each video; all frames of a shorter one.
        frame_tokens: most merged tokens per frame.
        video_backend: video decoder: `pyav` (the same as `auto`), or `decord` or `torchcodec` if installed.
        system_prompt: text file with the system turn; None: the checkpoint's own, else the paper's wording.
        max_length: most tokens per prompt; longer ones are errors.
        on_error: ``raise``: stop at the first record that cannot be used; ``skip``: leave it out, count it and write it
            to `skipped.jsonl` in the run folder. A benchmark with records left out is not the benchmark.
        num_workers: processes that decode video; 0 decodes in the process that predicts.

    Raises:
        ConfigError: invalid settings.

    Source:
        Future-L1, arXiv 2606.05769, section on FutureBench.
    """

    def __init__(
        self,
        records: Paths,
        video_root: str | None = None,
        data_root: str | None = None,
        processor: str | None = None,
        batch_size: int = 1,
        num_frames: int = 32,
        frame_tokens: int = 64,
        video_backend: VideoBackend = "auto",
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
            encoder_options={
                "system_prompt": system_prompt,
                "max_length": max_length,
                "video_num_frames": num_frames,
                "video_frame_tokens": frame_tokens,
                "video_backend": video_backend,
                # The prompt begins with a line break that must be kept.
                "strip_text": False,
            },
        )
        self.save_hyperparameters()

    def open_source(self, stage: PromptStage) -> RecordSource:
        """Open the benchmark."""
        videos, root = (media_folder(name, self.hparams[name]) for name in ("video_root", "data_root"))
        return open_records(
            self.hparams["records"], parse=partial(parse_futurebench, video_root=videos, data_root=root)
        )
