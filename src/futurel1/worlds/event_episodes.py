"""An episode of the world of events: a scene with a question about its future, in words and as records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import frame_record, thoughts_text
from futurel1.worlds.collisions import NUM_SHAPES, PAIRS
from futurel1.worlds.episodes import QuestionEpisode
from futurel1.worlds.event_questions import ARRIVALS, Asked, arrivals
from futurel1.worlds.event_scenes import EventScene
from futurel1.worlds.look import COLOURS, LAST_SEEN, WALLS, ZONES, direction, zones_of
from futurel1.worlds.questions import HOPS, INTERPOLATION, LATER, OBSERVED

__all__ = ["EventEpisode"]


@dataclass(frozen=True, kw_only=True)
class EventEpisode(EventScene, QuestionEpisode):
    """A scene with one question about its future.

    Args:
        size: see `EventScene`.
        layout: see `EventScene`.
        last_colours: see `EventScene`.
        states: see `EventScene`.
        split: see `QuestionEpisode`.
        number: see `QuestionEpisode`.
        asked: the question and its answer.
        pillar_colour: see `EventScene`.
        variant: see `QuestionEpisode`.
    """

    asked: Asked

    @property
    def thoughts(self) -> tuple[str, ...]:
        """Thoughts before each hint and after the last, in coarse words without coordinates."""
        if self.asked.kind == "zone":
            return tuple(self.caption(step) for step in (LAST_SEEN, *self.asked.hints))
        return (self._now(), *(self._step(step) for step in self.asked.hints))

    @property
    def future_positions(self) -> NDArray[np.float64]:
        """(hints, 3, 2) positions in the hints, of the shapes in the order of their pairs of colours.

        A colour never leaves its pair and no two shapes share one, so that a frame alone tells that order.
        """
        order = np.argsort(np.asarray(self.last_colours) % (len(COLOURS) // 2))
        places: NDArray[np.float64] = self.states.positions[list(self.asked.hints)][:, order]
        return places

    def open_record(self, video: str) -> dict[str, Any]:
        """An open question about the same clip, as in TwiFF: what happens to one shape, answered in a sentence.

        Args:
            video: path of its clip, relative to the folder of the records' file.

        Returns:
            A frame-indexed record that JSON can hold.
        """
        asked = self.asked
        steps = range(LAST_SEEN + 1, asked.window[1] + 1)
        name = asked.names[asked.target]
        question = f"What happens to the {name} in the next {len(steps)} steps?"
        if len(steps) == 1:
            question = f"What happens to the {name} in the next step?"
        thoughts = (self._look(asked.target), *(self._walk(asked.target, step) for step in steps))
        done = [phrase for step in steps for phrase in self._deeds(asked.target, step)] or ["meets nothing"]
        zone = ZONES[zones_of(self.states.positions[steps[-1], asked.target])]
        return frame_record(
            f"{self.id}-open",
            video,
            observed=OBSERVED,
            hints=steps,
            question=question,
            response=thoughts_text(thoughts),
            answer=f"It {', then '.join(done)}, and ends in the {zone} zone.",
            question_type="open",
        )

    def zone(self, shape: int, step: int) -> int:
        """Index into `ZONES` of the zone of a shape at a step."""
        return int(zones_of(self.states.positions[step, shape]))

    def caption(self, step: int) -> str:
        """Zones of all shapes at a step: the shape asked about, then the others in the order of their colour pairs."""
        pairs = np.asarray(self.asked.colours) % (len(COLOURS) // 2)
        order = sorted(range(NUM_SHAPES), key=lambda shape: (shape != self.asked.target, pairs[shape]))
        return ", ".join(f"{self.asked.names[shape]} {ZONES[self.zone(shape, step)]}" for shape in order)

    def about_what_is_shown(self, rng: np.random.Generator) -> Self:
        """The clip with a zone question about a frame that other records imagine, or about another shape's arrival."""
        zones = np.array(
            [[self.zone(shape, step) for step in range(LAST_SEEN, LATER + 1)] for shape in range(NUM_SHAPES)]
        )
        arrived = arrivals(zones == zones[:, -1:])[:, [step - 1 for step in ARRIVALS]]
        hop = int(rng.choice(HOPS)) if arrived.any() else int(rng.choice(HOPS[:-1]))
        told = arrival = later_zone = -1
        target = int(rng.integers(NUM_SHAPES))
        if hop == INTERPOLATION:
            told = int(rng.choice(np.flatnonzero(arrived.any(axis=1))))
            target = (told + int(rng.integers(1, NUM_SHAPES))) % NUM_SHAPES
            arrival, later_zone = ARRIVALS[arrived[told].argmax()], int(zones[told, -1])
        answer = int(zones[target, arrival if hop == INTERPOLATION else hop])
        choices = tuple(rng.permutation(len(ZONES)).tolist())
        asked = replace(
            self.asked,
            kind="zone",
            hop=hop,
            target=target,
            choices=choices,
            right=choices.index(answer),
            later_zone=later_zone,
            told=told,
            arrival=arrival,
        )
        return replace(self, asked=asked)

    def _now(self) -> str:
        """The scene when last seen, as far as it matters to the question."""
        if self.asked.kind == "event":
            return self._look(self.asked.target)
        return " ".join(self._look(shape) for shape in range(NUM_SHAPES))

    def _look(self, shape: int) -> str:
        """Position and direction of a shape when last seen."""
        states = self.states
        zone = ZONES[zones_of(states.positions[LAST_SEEN, shape])]
        place = f"behind the pillar in the {zone} zone" if states.hidden[LAST_SEEN, shape] else f"in the {zone} zone"
        heading = direction(states.velocities[LAST_SEEN, shape])
        return f"The {self.asked.names[shape]} is {place} and moves {heading}."

    def _step(self, step: int) -> str:
        """The events of a step, as far as they matter to the question."""
        states, names, colours = self.states, self.asked.names, list(COLOURS)
        if self.asked.kind == "event":
            return self._walk(self.asked.target, step)
        if self.asked.kind == "gate":
            openers = [f"The {names[shape]} opens the gate." for shape in np.flatnonzero(states.gate_hits[step])]
            return " ".join(openers) or f"The gate {'is open' if states.gate_open[step] else 'stays closed'}."
        turned = [colours[colour] for colour in self.colours[step]]
        meetings = [
            f"The {names[first]} touches the {names[second]}, they turn {turned[first]} and {turned[second]}."
            for first, second in PAIRS
            if states.contacts[step, first, second]
        ]
        return " ".join(meetings) or "No shapes touch."

    def _walk(self, shape: int, step: int) -> str:
        """What happens to one shape in a step, and its zone and direction after that."""
        before, after = zones_of(self.states.positions[step - 1 : step + 1, shape])
        zone = f"{'stays in' if before == after else 'moves into'} the {ZONES[after]} zone"
        deeds = self._deeds(shape, step)
        heading = ""
        if self.states.wall_hits[step, shape].any() or self.states.contacts[step, shape].any():
            heading = f", now moving {direction(self.states.velocities[step, shape])}"
        return f"It {' and '.join(filter(None, [', '.join(deeds), zone]))}{heading}."

    def _deeds(self, shape: int, step: int) -> list[str]:
        """The events of one shape in a step, in words."""
        states, names = self.states, self.asked.names
        deeds = [f"hits the {WALLS[wall]}" for wall in np.flatnonzero(states.wall_hits[step, shape])]
        colour = list(COLOURS)[self.colours[step, shape]]
        deeds += [
            f"touches the {names[other]} and turns {colour}" for other in np.flatnonzero(states.contacts[step, shape])
        ]
        if states.gate_hits[step, shape]:
            deeds.append("opens the gate")
        if states.goes_behind()[step, shape]:
            deeds.append("goes behind the pillar")
        return deeds
