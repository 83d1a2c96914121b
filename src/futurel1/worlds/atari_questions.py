"""Questions about Atari games, and clips that fit them.

A question, its options and the right one are sampled first, and then a clip in which exactly this option is right. Few
clips are right by chance: for many the ball is put where the answer comes true if it moves on as before, and maybe
turned. The emulator then decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.atari_emulation import FRAMES_PER_STEP, Take, play
from futurel1.worlds.atari_games import FIELD, GAMES, GameName, Tracks
from futurel1.worlds.atari_scenes import Excerpt, Part, fitting_starts, is_unseen, parts_of, stepwise
from futurel1.worlds.clips import SPLITS, Split
from futurel1.worlds.look import LAST_SEEN, LETTERS, ZONES, in_steps, zones_of
from futurel1.worlds.questions import STAY_RATE, Question, check_kinds

__all__ = ["HOPS", "USUAL_KINDS", "AtariQuestion", "Cell", "atari_cells", "fits", "put_to_fit", "sample_atari_block"]

Cell = tuple[GameName, int, str]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ATARI_KINDS = ("zone", "event")
USUAL_KINDS = ("zone",)  # clips that fit a question about an event are rare: a block takes minutes
HOPS = (1, 2, 3)
MARGIN = 3 / FIELD  # distance to a zone boundary below which the zone would be ambiguous
TAKES = 24  # of a game at once
TRIES = 3  # of each take for a question

PLACES = 128  # of the ball that are considered for a clip
UNCLEAR = 1  # frames around the end of a step in which an event would belong to two steps


@dataclass(frozen=True, kw_only=True)
class AtariQuestion(Question):
    """A question about the ball, see `Question`.

    Args:
        hop: see `Question`.
        choices: see `Question`; numbers of zones, or of events of the game.
        right: see `Question`.
        stays: see `Question`.
        game: the game.
        kind: `zone` asks where the ball is, `event` what happens to it.
    """

    game: GameName
    kind: str

    @property
    def question(self) -> str:
        """The question without its options."""
        if self.kind == "zone":
            return f"In which zone is the ball after {in_steps(self.hop)}?"
        return f"What happens to the ball in step {self.hop} from now?"

    def text(self, choice: int) -> str:
        """An option in words."""
        return ZONES[choice] if self.kind == "zone" else GAMES[self.game].events[choice]


def atari_cells(games: Sequence[GameName], kinds: Sequence[str]) -> tuple[Cell, ...]:
    """Game, hop and kind of the questions in a block of episodes; each occurs once with each answer letter.

    There are no interpolations: a later zone of the ball goes with some answers hardly ever, so that it would tell.
    """
    check_kinds(kinds, ATARI_KINDS)
    return tuple((game, hop, kind) for hop in HOPS for kind in kinds for game in games)


def sample_atari_question(cell: Cell, right: int, rng: np.random.Generator) -> AtariQuestion:
    """Sample a question and four options, with the right one at index `right`."""
    game, hop, kind = cell
    codes = len(ZONES) if kind == "zone" else len(GAMES[game].events)
    choices = tuple(rng.permutation(codes)[: len(LETTERS)].tolist())
    stays = bool(rng.random() < STAY_RATE)
    return AtariQuestion(hop=hop, choices=choices, right=right, stays=stays, game=game, kind=kind)


@lru_cache(maxsize=4)
def sample_atari_block(
    seed: int, split: Split, block: int, cells: tuple[Cell, ...]
) -> tuple[tuple[AtariQuestion, Excerpt], ...]:
    """Questions of a block of consecutive numbers, each with its own fitting clip."""
    words, clips = (
        np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), block], spawn_key=(stream,)))
        for stream in (1, 2)
    )
    (part,) = parts_of(split)
    order = words.permutation(len(cells) * len(LETTERS)).tolist()
    questions = [sample_atari_question(cells[cell // len(LETTERS)], cell % len(LETTERS), words) for cell in order]
    found: dict[int, Excerpt] = {}
    while len(found) < len(questions):
        for game in dict.fromkeys(cell[0] for cell in cells):
            asked = {place: one for place, one in enumerate(questions) if place not in found and one.game == game}
            if asked:
                found |= _matched(asked, play(game, clips, TAKES), part, clips)
    return tuple((asked, found[place]) for place, asked in enumerate(questions))


def _matched(
    questions: dict[int, AtariQuestion], takes: Sequence[Take], part: Part, rng: np.random.Generator
) -> dict[int, Excerpt]:
    """Clips from takes of one game for some of the questions, at most one from each take."""
    found: dict[int, Excerpt] = {}
    unused = list(takes)
    for place, asked in questions.items():
        tries = [unused[number] for _ in range(TRIES) for number in rng.permutation(len(unused))]
        for take in tries:
            excerpt = _fitting(asked, take, part, rng)
            if excerpt is not None:
                found[place] = excerpt
                unused.remove(take)
                break
    return found


def _fitting(asked: AtariQuestion, take: Take, part: Part, rng: np.random.Generator) -> Excerpt | None:
    """A clip from a take, or from the take with the ball elsewhere, that fits a question; None if none was found."""
    excerpt = fitting_excerpt(asked, take, part, rng)
    return put_to_fit(asked, take, part, rng) if excerpt is None and asked.kind == "zone" else excerpt


def fitting_excerpt(asked: AtariQuestion, take: Take, part: Part, rng: np.random.Generator) -> Excerpt | None:
    """One of the clips in a take that fit a question; None if there are none."""
    starts = fitting_starts(take, part)
    possible = starts[fits(asked, take.tracks, starts)]
    return Excerpt(take, int(rng.choice(possible))) if len(possible) else None


def fits(asked: AtariQuestion, every: Tracks, starts: Ints) -> Bools:
    """Whether the right option of a question is unambiguously true of clips, and the other three are false.

    Args:
        asked: the question.
        every: tracks of all frames of a take.
        starts: (S,) the frames of the take that are step 0 of the clips.

    Returns:
        (S,).
    """
    if asked.kind == "event":
        return _happens(asked, every, starts)
    tracks = stepwise(every, starts)
    return _zones_fit(asked, tracks.positions[:, :, 0], tracks.visible[:, :, 0])


def _zones_fit(asked: AtariQuestion, ball: Floats, visible: Bools) -> Bools:
    """(...,) whether a zone question fits (..., 10, 2) positions of the ball."""
    clear = visible & (np.abs(ball - 0.5) >= MARGIN).all(axis=-1)
    zones = zones_of(ball)
    right: Bools = clear[..., LAST_SEEN : asked.window[1] + 1].all(axis=-1) & (
        zones[..., asked.window[1]] == asked.answer
    )
    right &= (zones[..., LAST_SEEN] == asked.answer) == asked.stays
    return right


def _happens(asked: AtariQuestion, every: Tracks, starts: Ints) -> Bools:
    """(S,) whether the event that is the right option happens well within the step, and none of the others."""
    last = starts + asked.window[1] * FRAMES_PER_STEP
    around = last[:, None] + np.arange(1 - FRAMES_PER_STEP - UNCLEAR, UNCLEAR + 1)
    happened = every.events[around].any(axis=1)
    inside = every.events[around[:, 2 * UNCLEAR : -2 * UNCLEAR]].any(axis=1)
    known = (happened == inside).all(axis=1) & ~every.unlisted[around].any(axis=1)
    known &= every.visible[last - FRAMES_PER_STEP, 0]
    true = np.concatenate([happened, ~happened.any(axis=1, keepdims=True)], axis=1)[:, list(asked.choices)]
    fitting: Bools = known & true[:, asked.right] & (true.sum(axis=1) == 1)
    return fitting


def put_to_fit(asked: AtariQuestion, take: Take, part: Part, rng: np.random.Generator) -> Excerpt | None:
    """A clip from a take with the ball put elsewhere, maybe with another direction, so that a question fits."""
    starts = fitting_starts(take, None)
    if not len(starts):
        return None
    tracks = stepwise(take.tracks, starts)
    steps = range(asked.window[1] + 1)
    happened: Bools = np.any(tracks.events[:, steps], axis=1, keepdims=True).swapaxes(1, 2)
    # (S, 1, 2) axes along which the ball can be elsewhere, so that the same events happen
    elsewhere = np.array(take.rules.along)[:, None] == np.arange(2)
    freely: Bools = (~happened | elsewhere).all(axis=1)[:, None]
    path = tracks.positions[:, None, :, 0]
    low, high = np.array(take.rules.free) / FIELD
    places = np.where(freely, rng.uniform(low, high, (len(starts), PLACES, 2)), path[:, :, 0])
    turns = np.where(freely, rng.choice((-1, 1), (len(starts), PLACES, 2)), 1)
    balls = places[:, :, None] + turns[:, :, None] * (path - path[:, :, :1])
    inside = ((balls >= low) & (balls <= high))[:, :, steps].all(axis=2) | ~freely
    last = starts + LAST_SEEN * FRAMES_PER_STEP
    heading = (take.tracks.positions[last, 0] - take.tracks.positions[last - 1, 0])[:, None] * turns
    good = inside.all(axis=2)
    if asked.kind == "zone":
        good = good & _zones_fit(asked, balls, tracks.visible[:, None, :, 0])
    found = np.argwhere(good & (is_unseen(balls[:, :, LAST_SEEN], heading) == (part == "unseen")))
    if not len(found):
        return None
    start, place = found[int(rng.integers(len(found)))]
    first = starts[start]
    shift = np.rint((places[start, place] - path[start, 0, 0]) * FIELD).astype(int)
    changed = take.with_ball(int(first), shift.tolist(), turns[start, place].tolist())
    fitting = first in fitting_starts(changed, part) and fits(asked, changed.tracks, starts[[start]])[0]
    return Excerpt(changed, int(first)) if fitting else None
