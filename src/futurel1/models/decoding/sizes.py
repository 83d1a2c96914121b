"""How large a decoding step is: exactly as large as it has to be, or one of a few sizes that can be compiled."""

from dataclasses import dataclass

COMPILED_COLUMNS = 256
"""Columns of the smallest compiled step; for prompts, what their number is a multiple of."""


@dataclass
class Sizes:
    """Sizes of a decoding step.

    Args:
        slots: S, most prompts at once.
        branches: G, rows per prompt.
        max_new_tokens: R, most tokens of a response.
        prompt_columns: tokens of the longest prompt so far; grows.
        compiled: take few different sizes, because each is compiled by itself.
    """

    slots: int
    branches: int
    max_new_tokens: int
    prompt_columns: int = 0
    compiled: bool = False

    @property
    def all_rows(self) -> int:
        """Most rows at once."""
        return self.slots * self.branches

    def rows(self, used: int) -> int:
        """Rows of a step with so many in use: a compiled one has all of them, half, a quarter, ..."""
        if not self.compiled:
            return used
        size = self.all_rows
        while size // 2 >= used:
            size //= 2
        return size

    def prompts(self, used: int) -> int:
        """Prompts of a step with so many in use."""
        return self.slots if self.compiled else used

    def columns(self, longest: int) -> int:
        """Columns of responses of which the longest has so many tokens."""
        if not self.compiled:
            return longest
        size = COMPILED_COLUMNS
        while size < longest:
            size *= 2
        return min(size, self.max_new_tokens)

    def buckets(self) -> list[tuple[int, int]]:
        """Rows and columns of every compiled step, the largest ones first, which need the largest buffers."""
        rows, columns = [self.all_rows], [self.columns(1)]
        while rows[-1] > 1:
            rows.append(rows[-1] // 2)
        while columns[-1] < self.max_new_tokens:
            columns.append(self.columns(columns[-1] + 1))
        return [(count, width) for width in reversed(columns) for count in rows]

    def see_prompt(self, length: int) -> None:
        """Widen the prompts' columns for a longer prompt."""
        if length > self.prompt_columns:
            step = COMPILED_COLUMNS if self.compiled else 1
            self.prompt_columns = -(-length // step) * step
