"""Sizes to which hint frames and frames of whole videos are resized; pictures too long and thin are refused."""

import math
from pathlib import Path

from PIL import Image

from futurel1.errors import ConfigError, MediaError

__all__ = ["MAX_ASPECT_RATIO", "MIN_VIDEO_FRAME_TOKENS", "RESAMPLING", "check_aspect", "hint_size", "video_frame_size"]

MIN_VIDEO_FRAME_TOKENS = 4
"""Fewest merged tokens per frame of a whole video."""
RESAMPLING = Image.Resampling.BICUBIC
"""Filter that resizes pictures to these sizes."""
MAX_ASPECT_RATIO = 200
"""Image processors of the Qwen family refuse pictures with a greater ratio of the sides."""


def hint_size(height: int, width: int, max_tokens: int, unit: int = 32) -> tuple[int, int]:
    """Size to which a hint frame is resized so that it gives at most `max_tokens` visual tokens.

    Args:
        height: pixels of the frame.
        width: pixels of the frame.
        max_tokens: L_max, most merged tokens.
        unit: pixels per side of a merged token.

    Returns:
        (height, width) in pixels, multiples of `unit`: sides are rounded down, but to no less than one unit.

    Raises:
        ConfigError: `max_tokens` below 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_latent_tokens must be at least 1, got {max_tokens}")
    scale = min(1.0, math.sqrt(max_tokens * unit * unit / (height * width)))
    # The small constant keeps exact multiples exact: floor(2.9999999) is 3.
    rows = max(1, math.floor(height * scale / unit + 1e-6))
    columns = max(1, math.floor(width * scale / unit + 1e-6))
    # A side that was raised to one unit can push long, thin frames over the budget.
    rows, columns = min(rows, max_tokens), min(columns, max_tokens)
    if rows * columns > max_tokens:
        rows, columns = (1, columns) if rows == 1 else (rows, max_tokens // rows)
    return rows * unit, columns * unit


def video_frame_size(height: int, width: int, max_tokens: int, unit: int = 32) -> tuple[int, int]:
    """Size of a frame of a whole video: sides rounded to units, at most `max_tokens` and, if possible, at least 4.

    This applies the rule of the Qwen processors to one frame. The processors apply one limit to all clips of a call,
    which gives a short clip next to a long one many times the requested tokens per frame.

    Args:
        height: pixels of the frame.
        width: pixels of the frame.
        max_tokens: most merged tokens per frame.
        unit: pixels per side of a merged token.

    Returns:
        (height, width) in pixels, multiples of `unit`.
    """
    rows, columns = max(1, round(height / unit)), max(1, round(width / unit))
    if rows * columns < MIN_VIDEO_FRAME_TOKENS:
        scale = math.sqrt(MIN_VIDEO_FRAME_TOKENS / (height * width))
        rows, columns = math.ceil(height * scale), math.ceil(width * scale)
    if rows * columns > max_tokens:
        return hint_size(height, width, max_tokens, unit)
    return rows * unit, columns * unit


def check_aspect(path: Path, height: int, width: int) -> None:
    """Refuse a picture that the image processor would refuse, with an error that names it.

    Raises:
        MediaError: one side is more than `MAX_ASPECT_RATIO` times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise MediaError(
            f"{path}: a picture of {width} x {height} pixels is longer than {MAX_ASPECT_RATIO} times its width, which "
            "the image processor refuses; crop it or drop the record"
        )
