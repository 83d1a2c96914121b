"""One question about one video, answered with imagined frames."""

import logging
from collections.abc import Sequence
from pathlib import Path

from futurel1.files import write_whole
from futurel1.models.checkpoint_folders import TINY
from futurel1.predictor import DEFAULT_SAMPLING, Answer, EventPredictor, prompt_of
from futurel1.rollout import SamplingSettings
from futurel1.runs import Dtype

__all__ = ["ask"]

TINY_QUESTION = "Imagine the zones after 2 steps."

logger = logging.getLogger(__name__)


def ask(
    video: str | Path,
    question: str,
    options: Sequence[str] = (),
    *,
    model: str = TINY,
    branches: int = 1,
    pool_frames: Sequence[int] | None = None,
    max_frames: int = 16,
    max_length: int = 16384,
    sampling: SamplingSettings = DEFAULT_SAMPLING,
    system_prompt: str | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    html: str | Path | None = None,
) -> Answer:
    """Ask what happens next in a video.

    Args:
        video: Video file.
        question: What to ask.
        options: 2 to 26 answers to choose from, or none.
        model: Run folder, checkpoint folder, hub name or ``tiny``.
        branches: Responses to sample and vote over; 1 decodes greedily.
        pool_frames: Show only these frames of the 8-frame pool, 1 to 8, as training records do; null for the whole
            video, or for ``tiny`` the four frames that it was trained to continue.
        max_frames: Most frames taken from the video.
        max_length: Most tokens of the prompt.
        sampling: How the response is sampled; temperature and top_p matter with more than one branch.
        system_prompt: Text file with the system turn; null for the model's own, or the paper's.
        dtype: Dtype of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
        device: ``cpu``, ``cuda`` or ``auto``.
        html: Also write the answer as a page to this file.

    Raises:
        ConfigError: An empty question, a bad option or frame number, or a model without tokenizer.
        MissingFileError: No such video or model.
        MediaError: A video that cannot be read.
        RecordError: A prompt that is too long.
    """
    prompt_of(video, question, options, ())  # a mistake here should not wait for a model of 8B to load
    predictor = EventPredictor.from_pretrained(
        model, dtype=dtype, device=device, pool_frames=pool_frames, max_frames=max_frames, max_length=max_length,
        system_prompt=system_prompt,
    )  # fmt: skip
    answer = predictor(video, question, options=options, branches=branches, sampling=sampling)
    if model == TINY and not answer.answer:
        logger.info("no answer; the tiny backbone knows requests such as %r", TINY_QUESTION)
    if html is not None:
        write_whole(Path(html), answer.to_html())
    return answer
