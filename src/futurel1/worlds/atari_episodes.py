"""An episode of the world of Atari games: a clip with a question about the future of the ball, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.atari_questions import HOPS, AtariQuestion
from futurel1.worlds.atari_scenes import AtariScene
from futurel1.worlds.episodes import QuestionEpisode
from futurel1.worlds.look import LAST_SEEN, ZONES, zones_of

__all__ = ["AtariEpisode"]

BALL = 0


@dataclass(frozen=True, kw_only=True)
class AtariEpisode(AtariScene, QuestionEpisode):
    """A scene with one question about the future of the ball.

    Args:
        size: see `AtariScene`.
        excerpt: see `AtariScene`.
        recoloured: see `AtariScene`.
        split: see `QuestionEpisode`.
        number: see `QuestionEpisode`.
        asked: the question and its answer.
        variant: see `QuestionEpisode`.
    """

    asked: AtariQuestion

    @property
    def thoughts(self) -> tuple[str, ...]:
        """Thoughts before each hint and after the last, in coarse words without coordinates."""
        steps = (LAST_SEEN, *self.asked.hints)
        if self.asked.kind == "zone":
            return tuple(self.caption(step) for step in steps)
        return (f"The ball is in the {ZONES[self.zone(LAST_SEEN)]} zone.", *map(self._walk, self.asked.hints))

    @property
    def future_positions(self) -> NDArray[np.float64]:
        """(hints, 3, 2) positions of ball and paddles in the hints; a second paddle that is not there is at (0, 0)."""
        places: NDArray[np.float64] = self.tracks.positions[list(self.asked.hints)]
        return places

    def zone(self, step: int, thing: int = BALL) -> int:
        """Index into `ZONES` of the zone of the ball, or of a paddle, at a step."""
        return int(zones_of(self.tracks.positions[step, thing]))

    def caption(self, step: int) -> str:
        """Zones of ball and paddles at a step; a ball that is out of the field is gone."""
        visible = self.tracks.visible[step]
        return ", ".join(
            f"{name} {ZONES[self.zone(step, number)] if visible[number] else 'gone'}"
            for number, name in enumerate(self.rules.objects)
        )

    def about_what_is_shown(self, rng: np.random.Generator) -> Self:
        """The clip with a zone question about a frame that other records imagine, in which the ball is visible."""
        possible = [hop for hop in HOPS if self.tracks.visible[LAST_SEEN + hop, BALL]]
        hop, choices = int(rng.choice(possible)), tuple(rng.permutation(len(ZONES)).tolist())
        right = choices.index(self.zone(LAST_SEEN + hop))
        return replace(self, asked=replace(self.asked, kind="zone", hop=hop, choices=choices, right=right))

    def _walk(self, step: int) -> str:
        """What happens to the ball in a step, and its zone after that."""
        return f"It {' and '.join(self._deeds(step))}."

    def _deeds(self, step: int) -> Iterator[str]:
        tracks = self.tracks
        for number in np.flatnonzero(tracks.events[step]):
            yield self.rules.events[number].removeprefix("It ")
        if tracks.visible[step, BALL]:
            stays = self.zone(step) == self.zone(step - 1)
            yield f"{'stays in' if stays else 'moves into'} the {ZONES[self.zone(step)]} zone"
        elif not tracks.events[step].any():
            yield "is gone"
