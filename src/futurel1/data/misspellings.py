"""Find the record field that a misspelt key was meant to name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["could_be", "misspelt"]

_TEXT_FIELDS = frozenset(
    {"system", "question", "answer", "video", "cot", "reasoning", "problem", "problem_type", "question_type",
     "video_path"}
)  # fmt: skip
_INTEGER_FIELDS = frozenset({"reference_length"})
_OBJECT_FIELDS = frozenset({"messages", "conversations", "options"})
_FILE_LISTS = frozenset({"videos", "images"})
_SHORTEST_MISSPELT = 4


@lru_cache(maxsize=4096)
def misspelt(key: str, names: tuple[str, ...]) -> str | None:
    """The name that a key resembles: the same letters, or one letter missing, added or swapped with the next.

    The number of words has to be the same: `image_w` is not `image` with a letter too many.
    """
    letters = _letters(key)
    if len(letters) < _SHORTEST_MISSPELT:
        return None
    long = [name for name in names if len(name) >= _SHORTEST_MISSPELT]
    same = (name for name in long if _letters(name) == letters)
    near = (name for name in long if _words(name) == _words(key) and _one_slip(_letters(name), letters))
    return next(same, None) or next(near, None)


def _letters(key: str) -> str:
    return re.sub(r"[\W_]", "", key).casefold()


def _words(key: str) -> int:
    return len(re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", key))


def _one_slip(name: str, key: str) -> bool:
    """Whether one letter is missing or added, or swapped with the next."""
    if len(name) == len(key):
        return any(name[:at] + name[at + 1] + name[at] + name[at + 2 :] == key for at in range(len(name) - 1))
    short, long = sorted((name, key), key=len)
    cuts = (at for at, character in enumerate(long) if character.isalpha())
    return len(long) - len(short) == 1 and any(long[:at] + long[at + 1 :] == short for at in cuts)


def could_be(field: str, key: str, value: object) -> bool:
    """Whether `field` could hold the value that stands under the similar key `key`."""
    if field in _INTEGER_FIELDS:
        return type(value) is int
    if not isinstance(value, str | list | tuple | Mapping) or not value:
        return False
    if field in _TEXT_FIELDS:
        # `answers` and `questions` are columns of their own
        return isinstance(value, str) and _letters(key) != f"{_letters(field)}s"
    if field in _OBJECT_FIELDS:
        return not isinstance(value, str)
    # `video` for `videos` holds one file
    return field in _FILE_LISTS or isinstance(value, list | tuple)
