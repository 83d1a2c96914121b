"""The procedural world of events, written to disk on demand."""

from pathlib import Path
from typing import Any

from futurel1.datamodules.video_hint import VideoHintDataModule
from futurel1.errors import ConfigError
from futurel1.worlds import write_world
from futurel1.worlds.event_questions import Kind

__all__ = ["BouncingEventsDataModule"]


class BouncingEventsDataModule(VideoHintDataModule):
    """A :class:`VideoHintDataModule` over the world of events, which it writes into a folder unless it is there.

    It trains on the world's training clips and validates on `val_fraction` of them. `futurel1 test` and
    `futurel1 predict` read the test clips, so that these decide nothing in training. To use the same test questions as
    a benchmark, or the clips for rollouts, give the files in the folder to `FutureBenchDataModule` and
    `RolloutPromptDataModule`.

    Args:
        folder: folder of the world: clips and records as `futurel1 world` writes them. Existing clips are kept; a
            world of another seed or size is an error. Only one process writes, so several machines have to share the
            folder.
        num_train: training clips, each with one question.
        num_test: test clips, whose combinations of colour and form and layouts never occur in training.
        num_rl: clips for reinforcement learning, in `rl.jsonl`.
        world_seed: seed of the world.
        frame_size: side of the frames in pixels, a multiple of 32.
        kinds: kinds of question: zone, event, pair, gate; None for all.
        open_questions: train and test on questions without options, as TwiFF asks, about the same clips.
        progress: show a progress bar while clips are written.
        **options: arguments of :class:`VideoHintDataModule` other than the paths of records.

    Raises:
        ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        folder: str = "runs/events",
        num_train: int = 2048,
        num_test: int = 256,
        num_rl: int = 0,
        world_seed: int = 0,
        frame_size: int = 96,
        kinds: list[Kind] | None = None,
        open_questions: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> None:
        ending = "_open.jsonl" if open_questions else ".jsonl"
        super().__init__(
            train=str(Path(folder) / f"train{ending}"),
            val=None,
            test=str(Path(folder) / f"test{ending}"),
            predict=None,
            **options,
        )
        if num_train < 1 or num_test < 1:
            raise ConfigError(f"num_train and num_test must be at least 1, got {num_train} and {num_test}")
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        """Write missing parts of the world, then measure record lengths if batches are bounded by tokens."""
        hparams = self.hparams
        write_world(
            Path(hparams["folder"]),
            train=hparams["num_train"],
            test=hparams["num_test"],
            rl=hparams["num_rl"],
            seed=hparams["world_seed"],
            size=hparams["frame_size"],
            kinds=hparams["kinds"] or None,
            progress=hparams["progress"],
        )
        super().prepare_data()
