"""Questions about the world of events, and sampling of scenes that fit them.

A question, its options and the right one are sampled first, and then a scene in which exactly this option is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from futurel1.worlds.clips import SPLITS, Split
from futurel1.worlds.collisions import NUM_SHAPES, PAIRS, PILLAR_HALF, States
from futurel1.worlds.event_layouts import Layout, layouts_of
from futurel1.worlds.event_scenes import sample_colours, sample_scenes
from futurel1.worlds.look import COLOURS, FORMS, LAST_SEEN, LETTERS, WALLS, ZONES, in_steps, zones_of
from futurel1.worlds.questions import HOPS, INTERPOLATION, LATER, OBSERVED, STAY_RATE, Question, check_kinds

__all__ = [
    "ARRIVALS",
    "KINDS",
    "NOTHING",
    "NO_ONE",
    "Asked",
    "Kind",
    "arrivals",
    "fitting",
    "question_cells",
    "sample_block",
    "sample_question",
]

Kind = Literal["zone", "event", "pair", "gate"]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

KINDS: tuple[Kind, ...] = ("zone", "event", "pair", "gate")
ARRIVALS = (2, 3)  # steps after the last observed one in which that shape may arrive there, in zone questions
CANDIDATES = 1024  # scenes simulated at once
MARGIN = 1 / 24  # distance to a zone boundary below which the zone would be ambiguous
PILLAR_MARGIN = 1 / 48  # the same for the edge of the pillar
ARRIVAL_MARGIN = 1 / 96  # the same for a shape on its way into a zone, whose steps are hardly longer than MARGIN
SEEN_AT_LEAST = 2  # observed frames in which a shape must be visible for a question about it

# Events of one shape, by code: bounces off the 4 walls, contacts with the 3 shapes (never with itself), and
GATE, PILLAR, NOTHING = 7, 8, 9
NO_ONE = 3  # the answer, by code, of pair and gate questions when no pair touches and no shape opens the gate


@dataclass(frozen=True, kw_only=True)
class Asked(Question):
    """A question about the world of events, see `Question`.

    Args:
        kind: `zone` asks where a shape is, `event` what happens to it, `pair` which two touch, `gate` which one opens
            the gate.
        hop: see `Question`.
        target: number of the shape asked about; `pair` and `gate` questions mention it only in interpolations.
        colours: number of each shape's colour when last seen.
        choices: see `Question`; codes of zones, events, pairs or shapes.
        right: see `Question`.
        later_zone: number of the zone in which an interpolation states a shape to be at its end; -1 for other hops.
        told: number of that shape: the target, but another shape in zone questions; -1 for other hops.
        arrival: step after the last observed one in which that shape arrives, in zone questions; -1 for others.
        stays: see `Question`. In an interpolation the target then leaves that zone in the step after the other shape's
            arrival, so that its zone in the last hint is the right answer only if `stays` is False.
    """

    kind: Kind
    target: int
    colours: tuple[int, ...]
    later_zone: int
    told: int
    arrival: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the shapes: form and colour when last seen; a name stays the same when the colour changes."""
        colours = list(COLOURS)
        return tuple(f"{colours[colour]} {form}" for colour, form in zip(self.colours, FORMS, strict=True))

    @property
    def question(self) -> str:
        """The question without its options."""
        name = self.names[self.target]
        if self.hop == INTERPOLATION:
            later = f"the {self.names[self.told]} is in the {ZONES[self.later_zone]} zone"
            told = f"After {LATER - LAST_SEEN} steps {later}. "
            asked = {
                "zone": f"Where is the {name} when it gets there?",
                "event": "What happens to it on the way?",
                "pair": "Which shapes touch in these steps?",
                "gate": "Which shape opens the gate in these steps?",
            }
            return told + asked[self.kind]
        asked = {
            "zone": f"In which zone is the {name} after {in_steps(self.hop)}?",
            "event": f"What happens to the {name} in step {self.hop} from now?",
            "pair": f"Which shapes touch in step {self.hop} from now?",
            "gate": f"Which shape opens the gate in step {self.hop} from now?",
        }
        return asked[self.kind]

    def text(self, choice: int) -> str:
        """An option in words."""
        names = self.names
        if self.kind == "zone":
            return ZONES[choice]
        if self.kind == "event":
            contacts = [f"It touches the {name}" for name in names]
            bounces = [f"It hits the {wall}" for wall in WALLS]
            return [*bounces, *contacts, "It opens the gate", "It goes behind the pillar", "It meets nothing"][choice]
        if choice == NO_ONE:
            return "None of them"
        if self.kind == "gate":
            return f"The {names[choice]}"
        first, second = PAIRS[choice]
        return f"The {names[first]} and the {names[second]}"


def question_cells(kinds: Sequence[Kind]) -> tuple[tuple[int, Kind], ...]:
    """Hop and kind of the questions in a block of consecutive episodes; each occurs once with each answer letter."""
    check_kinds(kinds, KINDS)
    return tuple(
        # Events on the way reveal more than the zone of a shape at that time.
        (hop, "event" if hop == INTERPOLATION and kind == "zone" and "event" in kinds else kind)
        for hop in HOPS
        for kind in kinds
    )


@lru_cache(maxsize=4)
def sample_block(
    seed: int, split: Split, block: int, cells: tuple[tuple[int, Kind], ...]
) -> tuple[tuple[Asked, Layout, States], ...]:
    """Questions of a block of consecutive numbers, each with its own fitting scene."""
    words = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), block], spawn_key=(1,)))
    scenes = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split), block], spawn_key=(2,)))
    order = words.permutation(len(cells) * len(LETTERS)).tolist()
    questions = [sample_question(split, cells[cell // len(LETTERS)], cell % len(LETTERS), words) for cell in order]
    layouts = layouts_of(split)
    found: dict[int, tuple[Asked, Layout, States]] = {}
    while len(found) < len(questions):
        candidates = [layouts[number] for number in scenes.integers(len(layouts), size=CANDIDATES)]
        possible, states = sample_scenes(candidates, scenes)
        edge_free = _off_the_pillars_edge(states, [candidates[number] for number in possible])
        unused = np.ones(len(possible), bool)
        # Discs are interchangeable, so every assignment of names makes another scene of the same simulation.
        for order in permutations(range(NUM_SHAPES)):
            named, clear = states.reordered(order), edge_free[..., order]
            for place, asked in enumerate(questions):
                if place not in found:
                    fitting = np.flatnonzero(unused & _fits(asked, named, clear))
                    if len(fitting):
                        scene = int(fitting[0])
                        unused[scene] = False
                        found[place] = (asked, candidates[possible[scene]], named.scene(scene))
    return tuple(found[place] for place in range(len(questions)))


def sample_question(split: Split, cell: tuple[int, Kind], right: int, rng: np.random.Generator) -> Asked:
    """Sample a question and four options, with the right one at index `right`."""
    hop, kind = cell
    target = int(rng.integers(NUM_SHAPES))
    later_zone = int(rng.integers(len(ZONES))) if hop == INTERPOLATION else -1
    if kind == "event":
        others = [len(WALLS) + shape for shape in range(NUM_SHAPES) if shape != target]
        # Within four steps a shape that ends in a zone can hardly have come from the opposite walls.
        walls = range(len(WALLS)) if later_zone < 0 else (later_zone % 2, 2 + later_zone // 2)
        possible = [*walls, *others, GATE, PILLAR, NOTHING]
    else:
        possible = list(range(4))
    colours = sample_colours(split, rng)
    choices = tuple(rng.permutation(possible)[: len(LETTERS)].tolist())
    stays = bool(rng.random() < STAY_RATE)
    told = target if hop == INTERPOLATION else -1
    arrival = -1
    if hop == INTERPOLATION and kind == "zone":
        told = (target + int(rng.integers(1, NUM_SHAPES))) % NUM_SHAPES
        arrival = ARRIVALS[0] if stays else ARRIVALS[1]
    return Asked(
        kind=kind,
        hop=hop,
        target=target,
        colours=colours,
        choices=choices,
        right=right,
        later_zone=later_zone,
        told=told,
        arrival=arrival,
        stays=stays,
    )


def _off_the_pillars_edge(states: States, layouts: Sequence[Layout]) -> Bools:
    """(B, T, N) whether it is unambiguous that a shape is behind the pillar or not."""
    pillars = np.array([layout.pillar for layout in layouts])
    beyond = np.abs(states.positions - pillars[:, None, None]).max(axis=-1) - PILLAR_HALF
    clear: Bools = np.abs(beyond) >= PILLAR_MARGIN
    return clear


def _outcomes(asked: Asked, states: States, first: int, last: int) -> Bools:
    """(B, codes) which answers, by code, are true for the steps from `first` to `last`."""
    steps, target = slice(first, last + 1), asked.target
    if asked.kind == "zone":
        step = LAST_SEEN + asked.arrival if asked.hop == INTERPOLATION else last
        there: Bools = zones_of(states.positions[:, step, target])[:, None] == np.arange(len(ZONES))
        return there
    if asked.kind == "event":
        alone = np.stack([states.gate_hits[:, steps, target], states.goes_behind()[:, steps, target]], axis=-1)
        happened = np.concatenate(
            [states.wall_hits[:, steps, target], states.contacts[:, steps, target], alone], axis=-1
        )
    elif asked.kind == "pair":
        happened = np.stack([states.contacts[:, steps, one, other] for one, other in PAIRS], axis=-1)
    else:
        happened = states.gate_hits[:, steps]
    found = np.any(happened, axis=1, keepdims=True)[:, 0]
    return np.concatenate([found, ~np.any(found, axis=1, keepdims=True)], axis=1)


def arrivals(there: Bools) -> Bools:
    """(..., K) whether a shape arrives in a step and stays, given (..., 1 + K) whether it is there."""
    steps = range(1, there.shape[-1])
    return np.stack([~there[..., :step].any(axis=-1) & there[..., step:].all(axis=-1) for step in steps], axis=-1)


def fitting(asked: Asked, states: States, layout: Layout) -> Bools:
    """(B,) whether the right option is unambiguously true, and the other three false, in scenes of one layout."""
    return _fits(asked, states, _off_the_pillars_edge(states, [layout] * len(states.positions)))


def _fits(asked: Asked, states: States, edge_free: Bools) -> Bools:
    """(B,) whether the right option is unambiguously true in a scene and the other three are false."""
    return _answered(asked, states) & _beyond_dispute(asked, states, edge_free) & _zones_as_told(asked, states)


def _answered(asked: Asked, states: States) -> Bools:
    """(B,) whether the right option is true in a scene and the other three are false."""
    first, last = asked.window
    true = _outcomes(asked, states, first, last)[:, list(asked.choices)]
    fits: Bools = true[:, asked.right] & (true.sum(axis=1) == 1)
    nothing = {"event": NOTHING, "pair": NO_ONE, "gate": NO_ONE}.get(asked.kind, asked.answer)
    if asked.hop == INTERPOLATION and asked.answer != nothing:
        fits &= _outcomes(asked, states, first, last - 1)[:, asked.answer]  # the event must happen within the hints
    return fits


def _beyond_dispute(asked: Asked, states: States, edge_free: Bools) -> Bools:
    """(B,) whether the shapes of a scene were seen, and it is unambiguous whether and in which step events happen."""
    first, last = asked.window
    involved = list(range(NUM_SHAPES))
    if asked.kind in ("zone", "event"):
        involved = sorted({asked.target, asked.told} - {-1})
    fits: Bools = np.all(states.clear_cut[:, LAST_SEEN : last + 2, involved], axis=(1, 2))
    times_seen: Ints = np.sum(~states.hidden[:, OBSERVED][..., involved], axis=1)
    fits &= np.min(times_seen, axis=1) >= SEEN_AT_LEAST
    if asked.kind == "gate":
        fits &= ~states.gate_open[:, first - 1] & ~states.gate_open[:, LAST_SEEN]
    if asked.kind == "event":
        fits &= edge_free[:, first - 1 : last + 1, asked.target].all(axis=1)
    return fits


def _zones_as_told(asked: Asked, states: States) -> Bools:
    """(B,) whether shapes are in the zones that the question implies, clear of boundaries where thoughts name zones.

    Thoughts name zones at the start and the end, and in zone questions those of the target at every step.
    """
    _, last = asked.window
    target = asked.target
    fits: Bools = np.ones(len(states.positions), bool)
    in_words = [LAST_SEEN, last]
    if asked.kind == "zone":
        fits &= (zones_of(states.positions[:, LAST_SEEN, target]) == asked.answer) == asked.stays
        in_words = list(range(LAST_SEEN, last + 1))
    if asked.arrival >= 0:
        arrival = LAST_SEEN + asked.arrival
        in_words = [LAST_SEEN, arrival]
        fits &= (np.abs(states.positions[:, LATER, asked.told] - 0.5) >= MARGIN).all(axis=1)
        crossing = np.abs(states.positions[:, arrival - 1 : arrival + 1, asked.told] - 0.5)
        fits &= (crossing >= ARRIVAL_MARGIN).all(axis=(1, 2))
        there = zones_of(states.positions[:, LAST_SEEN : LATER + 1, asked.told]) == asked.later_zone
        fits &= arrivals(there)[:, asked.arrival - 1]
        if asked.stays:
            fits &= zones_of(states.positions[:, arrival + 1, target]) != asked.answer
    elif asked.later_zone >= 0:
        fits &= zones_of(states.positions[:, LATER, asked.told]) == asked.later_zone
    fits &= (np.abs(states.positions[:, in_words, target] - 0.5) >= MARGIN).all(axis=(1, 2))
    return fits
