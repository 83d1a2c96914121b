"""An episode of the world of events: a scene with a question about its future, in words and as records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from futurel1.worlds.clips import Split, frame_record, thoughts_text
from futurel1.worlds.collisions import NUM_SHAPES, PAIRS
from futurel1.worlds.event_questions import OBSERVED, Asked
from futurel1.worlds.event_scenes import EventScene
from futurel1.worlds.look import COLOURS, LAST_SEEN, LETTERS, WALLS, ZONES, direction, zones_of

__all__ = ["EventEpisode"]


@dataclass(frozen=True, kw_only=True)
class EventEpisode(EventScene):
    """A scene with one question about its future.

    Args:
        size: see `EventScene`.
        layout: see `EventScene`.
        last_colours: see `EventScene`.
        states: see `EventScene`.
        split: its split.
        number: its number in the split, from 0.
        asked: the question and its answer.
        pillar_colour: see `EventScene`.
        variant: what was changed in an episode of that number; "" for the episode itself.
    """

    split: Split
    number: int
    asked: Asked
    variant: str = ""

    @property
    def id(self) -> str:
        """Name of the episode and of its clip, such as `train-00012` or `counterfactual-00012-moved`."""
        return "-".join(filter(None, (self.split, f"{self.number:05d}", self.variant)))

    @property
    def question_type(self) -> str:
        """FutureBench's name for the depth of the question: `hop1`, `hop2`, `hop3`, or `hop5` for interpolations."""
        return f"hop{self.asked.hop}"

    @property
    def question(self) -> str:
        """The question without its options."""
        return self.asked.question

    @property
    def options(self) -> dict[str, str]:
        """Option letter to option text, in the order shown."""
        return {letter: self.asked.text(choice) for letter, choice in zip(LETTERS, self.asked.choices, strict=True)}

    @property
    def listed_options(self) -> str:
        """The options as appended to a question, one per line."""
        return "".join(f"\n{letter}. {text}" for letter, text in self.options.items())

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        return LETTERS[self.asked.right]

    @property
    def thoughts(self) -> tuple[str, ...]:
        """Thoughts before each hint and after the last, in coarse words without coordinates."""
        if self.asked.kind == "zone":
            return tuple(self.caption(step) for step in (LAST_SEEN, *self.asked.hints))
        return (self._now(), *(self._step(step) for step in self.asked.hints))

    def record(self, video: str) -> dict[str, Any]:
        """The episode as a frame-indexed training record, answered by the text of an option.

        Args:
            video: path of its clip, relative to the folder of the records' file.

        Returns:
            A record that JSON can hold.
        """
        return frame_record(
            self.id,
            video,
            observed=OBSERVED,
            hints=self.asked.hints,
            question=self.question + self.listed_options,
            response=thoughts_text(self.thoughts),
            answer=self.options[self.answer],
            question_type=self.question_type,
            options=self.options,
            letter=self.answer,
        )

    def futurebench_record(self, video: str) -> dict[str, Any]:
        """The episode as a FutureBench record.

        Args:
            video: path of a clip of only the observed frames, because the benchmark shows a whole video.

        Returns:
            A record that JSON can hold.
        """
        return {
            "id": self.id,
            "video_path": video,
            "question_type": self.question_type,
            "qa": {"Question": self.question, "Options": self.options, "Answer": self.answer},
        }

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
