"""The world of events: its physics, questions and files, and that no text gives an answer away."""

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict

import decord
import jsonargparse
import numpy as np
import pytest

from futurel1.data import frame_pool, open_records, parse_record, parse_rl_prompt
from futurel1.data.prompts import parse_futurebench
from futurel1.errors import ConfigError
from futurel1.worlds import (
    EventEpisode,
    bouncing,
    collisions,
    events,
    layouts_of,
    make_event_episode,
    make_event_episodes,
    palette,
    write_events_world,
    write_world,
)
from futurel1.worlds.command import world

COLOURS, FORMS, ZONES, WALLS = list(bouncing.COLOURS), bouncing.FORMS, bouncing.ZONES, bouncing.WALLS
LOW, HIGH, RADIUS = collisions.LOW, collisions.HIGH, collisions.RADIUS
TRAIN, TEST = 384, 256


@pytest.fixture(scope="module")
def train():
    return list(make_event_episodes("train", TRAIN))


@pytest.fixture(scope="module")
def test():
    return list(make_event_episodes("test", TEST))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_events_world(tmp_path_factory.mktemp("events"), train=8, test=5, rl=2, progress=False)


def records_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def decoded(path, indices=None):
    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(range(len(reader)) if indices is None else indices).asnumpy()


def zone_name(position):
    x, y = position
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


# --- physics --------------------------------------------------------------------------------------------------------


def test_shapes_stay_inside_do_not_overlap_and_lose_no_energy(train):
    for episode in train[:200]:
        states = episode.states
        assert states.positions.min() >= LOW
        assert states.positions.max() <= HIGH
        for first, second in collisions.PAIRS:
            gap = np.hypot(*(states.positions[:, first] - states.positions[:, second]).T)
            assert gap.min() > 2 * RADIUS - 0.02  # sides; a part of a step is at most 0.025 long
        energy = (states.velocities**2).sum(axis=(1, 2))
        assert energy == pytest.approx(np.full(10, energy[0]))
        assert np.hypot(*states.velocities[0].T).max() <= events.FASTEST + 1e-9
        assert np.hypot(*states.velocities[0].T).min() >= events.SLOWEST - 1e-9


def test_motion_is_straight_exactly_where_nothing_is_met(train):
    straight = bent = 0
    for episode in train[:200]:
        states = episode.states
        met = states.wall_hits.any(axis=-1) | states.contacts.any(axis=-1) | states.gate_hits
        kept = np.isclose(states.velocities[1:], states.velocities[:-1]).all(axis=-1)
        moved = np.isclose(states.positions[1:], states.positions[:-1] + states.velocities[1:]).all(axis=-1)
        assert (kept & moved)[~met[1:]].all()
        assert not kept[met[1:] & states.clear_cut[1:]].all()
        straight += int((~met[1:]).sum())
        bent += int(met.sum())
    assert min(straight, bent) > 500


def test_a_head_on_collision_exchanges_velocities_and_colours_once():
    layouts = collisions.Layouts(np.array([0]), np.array([0.7]), np.array([[0.24, 0.24]]))
    start = np.array([[[0.2, 0.8], [0.5, 0.8], [0.2, 0.4]]])
    velocity = np.array([[[0.1, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    states = collisions.simulate(start, velocity, layouts).scene(0)
    hits = np.flatnonzero(states.contacts[:, 0, 1])
    assert hits[0] == 2  # the gap of 0.3 - 1/6 is closed in the second step
    assert states.velocities[2, 0] == pytest.approx([0, 0])
    assert states.velocities[2, 1] == pytest.approx([0.1, 0])
    assert states.flips[:, 0].tolist() == states.flips[:, 1].tolist()
    assert states.flips[:, 0].tolist() == [int((hits <= step).sum()) for step in range(10)]
    assert not states.flips[:, 2].any()
    # then the second one bumps into the gate, 0.7 - 0.5 - REACH further on, and comes back to hit the first again
    assert np.flatnonzero(states.gate_hits[:, 1]).tolist() == [np.flatnonzero(states.gate_open)[0]] == [3]
    assert len(hits) > 1


def test_the_gate_opens_on_contact_alone_and_bars_the_way_until_then(train, test):
    opened = 0
    for episode in [*train[:200], *test[:100]]:
        states, layout = episode.states, episode.layout
        hits = states.gate_hits.any(axis=1)
        assert states.gate_open.tolist() == (np.cumsum(hits) > 0).tolist()
        along = states.positions[:, :, layout.gate_axis] - layout.gate_at
        closed = ~states.gate_open
        assert (np.sign(along[closed]) == np.sign(along[0])).all()
        assert (np.abs(along[closed]) >= collisions.REACH - 1e-9).all()
        for step in np.flatnonzero(hits):
            opened += 1
            # what bumps into it was within a step's way of it
            near = np.abs(along[step - 1 : step + 1]).min(axis=0) - collisions.REACH
            assert (near[states.gate_hits[step]] <= np.sqrt(3) * events.FASTEST).all()
    assert opened > 100


def test_shapes_pass_an_open_gate(train):
    crossed = 0
    for episode in train[:200]:
        along = episode.states.positions[:, :, episode.layout.gate_axis] - episode.layout.gate_at
        crossed += int((np.sign(along[-1]) != np.sign(along[0])).sum())
    assert crossed > 50


def test_colours_change_with_contacts_alone_and_into_the_partner(train):
    for episode in train[:200]:
        colours, touched = episode.colours, episode.states.contacts.any(axis=-1)
        changed = colours[1:] != colours[:-1]
        clear = episode.states.clear_cut[1:]
        assert (changed == touched[1:])[clear].all()
        assert ((colours[1:] - colours[:-1]) % 6 == 3)[changed].all()
        assert colours[4].tolist() == list(episode.asked.colours)
        gap = np.hypot(
            *(episode.states.positions[:, :, None] - episode.states.positions[:, None]).transpose(3, 0, 1, 2)
        )
        near = np.minimum(gap[1:], gap[:-1]) - 2 * RADIUS
        assert (near[episode.states.contacts[1:]] <= 2 * np.sqrt(3) * events.FASTEST).all()


def test_shapes_are_drawn_in_their_colours_and_hidden_ones_behind_the_pillar(train):
    seen = Counter()
    for episode in train[:60]:
        beyond = np.abs(episode.states.positions - episode.layout.pillar).max(axis=-1) - collisions.PILLAR_HALF
        for frame, step in zip(episode.render(), range(1, 9), strict=True):
            for shape in np.flatnonzero(
                np.abs(beyond[step]) > 0.02
            ):  # at its edge, what the pillar hides shows through
                x, y = np.floor(episode.states.positions[step, shape] * 96).astype(int)
                hidden = bool(episode.states.hidden[step, shape])
                colour = bouncing.COLOURS[COLOURS[episode.colours[step, shape]]]
                assert frame[y, x].tolist() == list(events.PILLAR_COLOUR if hidden else colour)
                seen[hidden] += 1
    assert seen[True] > 50


def test_the_picture_shows_whether_the_gate_is_open(train):
    for episode in train[:60]:
        frames = episode.render(range(10)).astype(int)
        at = int(episode.layout.gate_at * 96)
        line = frames[:, :, at] if episode.layout.gate_axis == 0 else frames[:, at]
        white = (np.abs(line - np.array(events.GATE_COLOUR)).max(axis=-1) < 8).sum(axis=1)
        is_open = episode.states.gate_open
        assert (white[is_open] <= 14).all()
        assert (white[~is_open] >= 60).all()


# --- determinism and splits -----------------------------------------------------------------------------------------

DIGEST = """
import hashlib, json
from futurel1.worlds import make_event_episode
digest = hashlib.sha256()
for number in range(16):
    episode = make_event_episode("test", number, seed={seed})
    digest.update(json.dumps([episode.record("a"), episode.open_record("a")]).encode() + episode.render().tobytes())
print(digest.hexdigest())
"""


def test_same_seed_gives_the_same_world_in_another_process_and_other_seeds_do_not(capsys):
    there = subprocess.run([sys.executable, "-c", DIGEST.format(seed=5)], capture_output=True, text=True, check=True)
    events._block.cache_clear()
    exec(DIGEST.format(seed=5), {})
    exec(DIGEST.format(seed=6), {})
    same, other = capsys.readouterr().out.split()
    assert same == there.stdout.strip() != other


def test_states_do_not_depend_on_the_size_of_the_frames():
    small, large = (make_event_episode("test", 3, size=size) for size in (32, 128))
    assert (small.states.positions == large.states.positions).all()
    assert small.asked == large.asked
    assert small.render().shape == (8, 32, 32, 3)
    assert np.allclose(small.positions() * 4, large.positions())


def test_splits_share_no_combination_no_layout_and_no_start(train, test):
    looks, layouts, starts = [], [], []
    for part in (train, test):
        looks.append(
            {(COLOURS[c], form) for e in part for row in e.colours for c, form in zip(row, FORMS, strict=True)}
        )
        layouts.append({e.layout for e in part})
        starts.append({e.states.positions[0].tobytes() for e in part})
    assert looks == [set(palette("train")), set(palette("test"))]
    assert not looks[0] & looks[1]
    assert layouts[0] <= set(layouts_of("train"))
    assert layouts[1] <= set(layouts_of("test"))
    assert not set(layouts_of("train")) & set(layouts_of("test"))
    assert len(layouts_of("train")) + len(layouts_of("test")) == 72
    assert len(layouts[1]) > 20
    assert not starts[0] & starts[1]
    assert sum(map(len, starts)) == TRAIN + TEST  # and no scene serves two questions
    drawn = list(make_event_episodes("rl", 64))
    assert {e.layout for e in drawn} <= set(layouts_of("train"))
    assert not {e.states.positions[0].tobytes() for e in drawn} & (starts[0] | starts[1])


# --- answers --------------------------------------------------------------------------------------------------------


def story(episode, shape, step):
    """What happens to a shape in a step, told from places, velocities, colours and the gate alone.

    Returns the true options of `event` questions, and the ones that cannot be told this way: after a collision the rest
    of the step is not a straight line.
    """
    states, layout = episode.states, episode.layout
    before, after = states.positions[step - 1 : step + 1, shape]
    heading = states.velocities[step - 1, shape]
    turned = np.flatnonzero(episode.colours[step] != episode.colours[step - 1])
    names = episode.asked.names
    true, unknown = set(), set()
    if shape in turned:
        true |= {f"It touches the {names[other]}" for other in turned if other != shape}
        unknown |= {f"It hits the {wall}" for wall in WALLS} | {"It opens the gate"}
    else:
        goal = before + heading
        past = [goal[0] < LOW, goal[0] > HIGH, goal[1] < LOW, goal[1] > HIGH]
        axis, at = layout.gate_axis, layout.gate_at
        reach = collisions.REACH * np.sign(at - before[axis])
        if not states.gate_open[step - 1] and (goal[axis] + reach - at) * reach > 0:
            if states.gate_open[step] and sum(states.gate_open[step - 1 : step + 1]) == 1:
                true.add("It opens the gate")
                # unless another was there a moment before, and the way was free by then
                unknown |= {"It opens the gate"} if (len(turned) or others_near(episode, shape, step)) else set()
            unknown |= {f"It hits the {wall}" for wall in WALLS}
        else:
            true |= {f"It hits the {wall}" for wall, beyond in zip(WALLS, past, strict=True) if beyond}
    inside = [bool((np.abs(place - layout.pillar) < collisions.PILLAR_HALF).all()) for place in (before, after)]
    if inside == [False, True]:
        true.add("It goes behind the pillar")
    if not true and not unknown:
        true.add("It meets nothing")
    return true, unknown


def others_near(episode, shape, step):
    along = np.abs(episode.states.positions[step - 1, :, episode.layout.gate_axis] - episode.layout.gate_at)
    return bool((np.delete(along, shape) < collisions.REACH + 0.35).any())


def window_of(episode):
    hop = int(episode.question_type[3:])
    return range(5, 9) if hop == 5 else range(4 + hop, 5 + hop)


def test_event_answers_follow_from_the_states(train, test):
    decided = 0
    for episode in [*train, *test]:
        if episode.asked.kind != "event":
            continue
        told = [story(episode, episode.asked.target, step) for step in window_of(episode)]
        true = set().union(*(true for true, _ in told))
        unknown = set().union(*(unknown for _, unknown in told))
        if len(true) > 1:
            true.discard("It meets nothing")
        right = episode.options[episode.answer]
        assert right in true | unknown
        assert not (set(episode.options.values()) - {right}) & (true - unknown)
        decided += right in true - unknown
    assert decided > 100


def test_zone_answers_are_where_the_target_is_and_never_on_a_boundary(train, test):
    asked = [episode for episode in [*train, *test] if episode.asked.kind == "zone"]
    assert len(asked) == (TRAIN + TEST) * 3 // 16
    for episode in asked:
        hop = int(episode.question_type[3:])
        place = episode.states.positions[4 + hop, episode.asked.target]
        assert episode.options[episode.answer] == zone_name(place)
        assert np.abs(place - 0.5).min() >= 1 / 24
        assert f"after {hop} step" in episode.question
        assert sorted(episode.options.values()) == sorted(ZONES)


def test_pair_answers_are_the_shapes_that_change_colour(train, test):
    asked = [episode for episode in [*train, *test] if episode.asked.kind == "pair"]
    assert len(asked) == (TRAIN + TEST) // 4
    for episode in asked:
        steps = window_of(episode)
        turned = [np.flatnonzero(episode.colours[step] != episode.colours[step - 1]) for step in steps]
        pairs = {" and ".join(f"the {episode.asked.names[shape]}" for shape in pair) for pair in turned if len(pair)}
        expected = {f"T{pair[1:]}" for pair in pairs} or {"None of them"}
        assert {episode.options[episode.answer]} == expected


def test_gate_answers_open_a_gate_that_was_closed(train, test):
    asked = [episode for episode in [*train, *test] if episode.asked.kind == "gate"]
    assert len(asked) == (TRAIN + TEST) // 4
    for episode in asked:
        states, steps = episode.states, window_of(episode)
        assert not states.gate_open[steps[0] - 1]
        answer = episode.options[episode.answer]
        assert states.gate_open[steps[-1]] == (answer != "None of them")
        if answer != "None of them":
            opening = int(np.flatnonzero(states.gate_open)[0])
            shape = episode.asked.names.index(answer.removeprefix("The "))
            along = np.abs(states.positions[:, :, episode.layout.gate_axis] - episode.layout.gate_at)
            assert along[opening - 1 : opening + 1, shape].min() - collisions.REACH < events.FASTEST * np.sqrt(3)
            assert states.gate_hits[opening].tolist() == [number == shape for number in range(3)]


def test_interpolations_tell_where_the_shape_is_later_and_ask_about_the_frames_between(train):
    asked = [episode for episode in train if episode.question_type == "hop5"]
    assert len(asked) == TRAIN // 4
    for episode in asked:
        place = episode.states.positions[8, episode.asked.target]
        told = re.match(r"After 4 steps the (.+) is in the (.+) zone\. ", episode.question)
        assert told.groups() == (episode.asked.names[episode.asked.target], zone_name(place))
        assert episode.asked.hints == (5, 6, 7)


def test_targets_were_seen_and_are_any_of_the_shapes(train):
    for episode in train:
        involved = [episode.asked.target] if episode.asked.kind in ("zone", "event") else range(3)
        for shape in involved:
            assert (~episode.states.hidden[1:5, shape]).sum() >= 2
    assert min(Counter(episode.asked.target for episode in train).values()) > TRAIN / 4
    assert sum(bool(e.states.hidden[1:9].any()) for e in train) > TRAIN / 3


def test_thoughts_are_coarse_follow_the_motion_and_tell_the_answer(train):
    for episode in train:
        thoughts = episode.thoughts
        assert len(thoughts) == len(episode.asked.hints) + 1
        assert not re.search(r"\d", " ".join(thoughts))
        path = episode.states.positions[[4, *episode.asked.hints]]
        for places, thought in zip(path, thoughts, strict=True):
            if episode.asked.kind == "zone":
                told = [f"{name} {zone_name(place)}" for name, place in zip(episode.asked.names, places, strict=True)]
                assert sorted(thought.split(", ")) == sorted(told)
                first, *others = (part.rpartition(" ")[0].rpartition(" ")[0] for part in thought.split(", "))
                assert first == episode.asked.names[episode.asked.target]
                assert np.diff([COLOURS.index(name.split()[0]) % 3 for name in others]) > 0
            if episode.asked.kind == "event":
                assert f"the {zone_name(places[episode.asked.target])} zone" in thought
        if episode.asked.kind == "event" and episode.options[episode.answer] != "It meets nothing":
            deed = episode.options[episode.answer].removeprefix("It ")
            assert deed in " ".join(thoughts)


def test_a_world_may_ask_for_zones_alone():
    episodes = list(make_event_episodes("train", 32, kinds=("zone",)))
    cells = Counter((episode.question_type, episode.asked.kind, episode.answer) for episode in episodes)
    assert cells == {(f"hop{hop}", "zone", letter): 2 for hop in (1, 2, 3, 5) for letter in "ABCD"}
    stayed = []
    for episode in episodes:
        target, step = episode.asked.target, {"hop1": 5, "hop2": 6, "hop3": 7, "hop5": 7}[episode.question_type]
        assert episode.asked.hints == tuple(range(5, step + 1))
        answer, name = episode.options[episode.answer], episode.asked.names[target]
        assert sorted(episode.options.values()) == sorted(ZONES)
        if episode.question_type == "hop5":
            told = episode.asked.told
            assert told != target
            path = [zone_name(place) for place in episode.states.positions[4:9, told]]
            where = f"After 4 steps the {episode.asked.names[told]} is in the {path[-1]} zone."
            assert episode.question == f"{where} Where is the {name} when it gets there?"
            arrival = path.index(path[-1])
            assert arrival == (2 if episode.asked.stays else 3)
            assert [zone == path[-1] for zone in path] == [False] * arrival + [True] * (5 - arrival)
            step = 4 + arrival
            assert (answer == ZONES[episode.zone(target, 7)]) == (not episode.asked.stays)
            crossing = episode.states.positions[step - 1 : step + 1, told]
            assert np.abs(crossing - 0.5).min() >= 1 / 96
        assert answer == zone_name(episode.states.positions[step, target]) == ZONES[episode.zone(target, step)]
        stayed.append(answer == ZONES[episode.zone(target, 4)])
    assert 0.1 < np.mean(stayed) < 0.4


def test_arrivals_are_first_and_for_good():
    there = np.array([[0, 0, 1, 1, 1], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    expected = [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert events.arrivals(there).tolist() == np.array(expected, bool).tolist()
    assert (events.arrivals(np.stack([there, there])) == events.arrivals(there)).all()


def test_kinds_that_are_none():
    with pytest.raises(ConfigError, match="zone, event, pair, gate"):
        make_event_episode("train", 0, kinds=())
    with pytest.raises(ConfigError, match=r"kinds=.'zone', 'zone'.*each once"):
        make_event_episode("train", 0, kinds=("zone", "zone"))


def test_clips_fit_the_kinds_of_question_of_their_folder(tmp_path):
    write_events_world(tmp_path, train=1, test=0, size=32, kinds=("zone",), progress=False)
    assert json.loads((tmp_path / "world.json").read_text())["kinds"] == ["zone"]
    with pytest.raises(ConfigError, match="kinds"):
        write_events_world(tmp_path, train=1, test=0, size=32, progress=False)


# --- what the text tells --------------------------------------------------------------------------------------------


def test_hops_kinds_and_letters_are_balanced(train, test):
    for part in (train, test):
        for block in range(0, len(part), 64):
            cells = Counter((e.question_type, e.asked.kind, e.answer) for e in part[block : block + 64])
            assert len(cells) == 60
            assert {cells[cell] for cell in cells if cell[:2] != ("hop5", "event")} == {1}
            assert {cells[cell] for cell in cells if cell[:2] == ("hop5", "event")} == {2}


def template_of(question):
    return re.sub("|".join(COLOURS), "", question)


def features_of(question, options):
    """Per option, words about it and about it together with the question."""
    asked = template_of(question)
    kind = asked.rpartition(". ")[2][:18]
    named = set(re.findall(rf"(?:{'|'.join(COLOURS)}) \w+", question))
    rows = []
    for letter, text in options.items():
        plain = re.sub("|".join(COLOURS), "", text)
        rows.append(
            [f"letter {letter}", f"text {plain}", f"{kind}|{plain}", f"{asked}|{plain}", f"{kind}|{letter}"]
            + [f"{kind}|{word}" for word in text.split()]
            + [f"{kind}|same {any(name in text for name in named)}"]
        )
    return rows


def guess_rate(seen, unseen, steps=150):
    """Share of `unseen` that a softmax over options, fitted to `seen`, gets right from the text alone."""
    index = {}
    for question, options, _ in seen:
        for row in features_of(question, options):
            for name in row:
                index.setdefault(name, len(index))

    def encode(samples):
        x = np.zeros((len(samples), 4, len(index)), np.float32)
        for place, (question, options, _) in enumerate(samples):
            for option, row in enumerate(features_of(question, options)):
                x[place, option, [index[name] for name in row if name in index]] = 1
        return x, np.array(["ABCD".index(answer) for _, _, answer in samples])

    x, y = encode(seen)
    weights = np.zeros(len(index), np.float32)
    for _ in range(steps):
        scores = np.exp(x @ weights)
        scores /= scores.sum(axis=1, keepdims=True)
        scores[np.arange(len(y)), y] -= 1
        weights -= 0.5 * (np.einsum("noe,no->e", x, scores) / len(y) + 1e-4 * weights)
    x, y = encode(unseen)
    return float(((x @ weights).argmax(axis=1) == y).mean())


def texts(episodes):
    return [(episode.question, episode.options, episode.answer) for episode in episodes]


def test_a_guesser_that_sees_only_the_text_is_at_chance(train, test):
    sigma = np.sqrt(0.25 * 0.75 / TEST)
    assert abs(guess_rate(texts(train), texts(test)) - 0.25) < 3 * sigma
    half = TRAIN // 2
    assert abs(guess_rate(texts(train[:half]), texts(train[half:])) - 0.25) < 3 * np.sqrt(0.25 * 0.75 / half)


def test_the_guesser_would_find_a_leak(train):
    """Questions in which, one time in two, the alphabetically first option is right."""
    leaking = []
    for number, (question, options, answer) in enumerate(texts(train)):
        first = min(options, key=options.__getitem__)
        leaking.append((question, options, first if number % 2 else answer))
    assert guess_rate(leaking[: TRAIN // 2], leaking[TRAIN // 2 :]) > 0.4


@pytest.mark.parametrize("kinds", [events.KINDS, ("zone",)])
def test_no_template_option_or_word_is_right_more_often_than_chance_in_many_questions(kinds):
    """Texts are drawn before scenes, so that thousands of them cost nothing."""
    rng = np.random.default_rng(0)
    cells = events._cells(kinds)
    asked = [events._ask("train", cells[number // 4 % len(cells)], number % 4, rng) for number in range(12800)]
    offered, right = defaultdict(int), defaultdict(int)
    for question in asked:
        words = template_of(question.question)
        for place, choice in enumerate(question.choices):
            for key in (
                ("code", question.kind, choice),
                ("place", place),
                ("at hop", question.kind, question.hop, choice),
                ("asked", words, template_of(question.text(choice))),
                ("own", question.kind, question.names[question.target] in question.text(choice)),
            ):
                offered[key] += 1
                right[key] += place == question.right
    deviations = [
        (right[key] - count / 4) / np.sqrt(count * 0.25 * 0.75) for key, count in offered.items() if count > 40
    ]
    assert len(deviations) > 25 * len(kinds)
    assert np.abs(deviations).max() < 4.5
    assert np.std(deviations) < 1.25


def test_each_question_keeps_the_text_that_was_drawn_for_it(train):
    """Scenes are fitted to the questions, so no question can be dropped or changed because its answer is rare."""
    rng = np.random.default_rng(np.random.SeedSequence([0, 0, 1], spawn_key=(1,)))
    cells = events._cells(events.KINDS)
    drawn = [events._ask("train", cells[cell // 4], cell % 4, rng) for cell in rng.permutation(64).tolist()]
    assert [episode.asked for episode in train[64:128]] == drawn


def test_repeating_the_last_seen_zone_is_at_chance(train, test):
    asked = [episode for episode in [*train, *test] if episode.asked.kind == "zone"]
    kept = [zone_name(e.states.positions[4, e.asked.target]) == e.options[e.answer] for e in asked]
    assert abs(np.mean(kept) - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(asked))


# --- files ----------------------------------------------------------------------------------------------------------


def test_written_clips_show_the_states_of_the_pool(files):
    assert frame_pool(10) == list(range(1, 9))
    for split in ("train", "test", "rl"):
        for number, record in enumerate(records_of(files.root / f"{split}.jsonl")):
            episode = make_event_episode(split, number)
            pool = decoded(files.root / record["video"], frame_pool(10)).astype(float)
            error = np.abs(pool - episode.render().astype(float)).mean(axis=(1, 2, 3))
            assert error.max() < 3
            shifted = np.abs(pool - episode.render(range(8)).astype(float)).mean(axis=(1, 2, 3))
            assert (shifted > 1.5 * error).all()


def test_benchmark_clips_show_what_is_observed_and_nothing_of_the_future(files):
    for number, record in enumerate(records_of(files.futurebench)):
        shown = decoded(files.root / record["video_path"])
        assert len(shown) == 4
        error = np.abs(shown - make_event_episode("test", number).render([1, 2, 3, 4]).astype(float)).mean()
        assert error < 3


def parsed(path, parse):
    return [parse(record) for record in map(open_records(path, parse=lambda r: r).raw, range(len(records_of(path))))]


def test_records_parse_in_every_shape(files):
    for split, count in (("train", 8), ("test", 5), ("rl", 2)):
        records = records_of(files.root / f"{split}.jsonl")
        assert [record["id"] for record in records] == [f"{split}-{number:05d}" for number in range(count)]
        for number, record in enumerate(records):
            sample = parse_record(record, file="a.jsonl", number=number + 1, folder=files.root)
            last = {"hop1": 5, "hop2": 6, "hop3": 7, "hop5": 7}[record["question_type"]]
            assert [frame.pool_index for frame in sample.observed] == [1, 2, 3, 4]
            assert [frame.pool_index for frame in sample.hints] == list(range(5, last + 1))
            assert sample.answer == record["options"][record["letter"]]
            human = record["conversations"][0]["value"]
            assert all(f"\n{letter}. {text}" in human for letter, text in record["options"].items())
    prompts = parsed(files.train, parse_rl_prompt)
    assert [prompt.meta["options"] for prompt in prompts] == [record["options"] for record in records_of(files.train)]
    bench = parsed(files.futurebench, parse_futurebench)
    assert [prompt.meta["answer"] for prompt in bench] == [record["letter"] for record in records_of(files.test)]
    assert [prompt.meta["split"] for prompt in bench] == [r["question_type"] for r in records_of(files.test)]
    assert [p.meta["answer"] for p in parsed(files.futurebench, parse_rl_prompt)] == [p.meta["answer"] for p in bench]


def test_open_questions_tell_what_one_shape_does(files):
    for path, split in ((files.train_open, "train"), (files.test_open, "test")):
        for number, record in enumerate(records_of(path)):
            episode = make_event_episode(split, number)
            sample = parse_record(record, file=path.name, number=number + 1, folder=files.root)
            last = window_of(episode)[-1]
            assert [frame.pool_index for frame in sample.hints] == list(range(5, last + 1))
            assert "options" not in record
            end = zone_name(episode.states.positions[last, episode.asked.target])
            assert record["answer"].endswith(f"ends in the {end} zone.")
            hits = {f"hits the {wall}" for wall in WALLS if f"hits the {wall}" in record["answer"]}
            walls = episode.states.wall_hits[5 : last + 1, episode.asked.target].any(axis=0)
            assert hits == {f"hits the {wall}" for wall, hit in zip(WALLS, walls, strict=True) if hit}
            turned = episode.states.contacts[5 : last + 1, episode.asked.target].any()
            assert ("turns" in record["answer"]) == turned


class Killed(BaseException):
    """Stands for a process that dies."""


def test_a_killed_write_is_taken_up_where_it_stopped_and_unchanged_records_are_left_alone(tmp_path, monkeypatch, files):
    render, calls = EventEpisode.render, []

    def dies_at_the_fourth_clip(self, steps):
        calls.append(self.id)
        if len(calls) == 4:
            raise Killed
        return render(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(EventEpisode, "render", dies_at_the_fourth_clip)
        with pytest.raises(Killed):
            write_events_world(tmp_path, train=8, test=5, rl=2, progress=False)
    assert not (tmp_path / "train.jsonl").exists()
    (tmp_path / "videos" / "train-00002.mp4").write_bytes(b"")
    again = write_events_world(tmp_path, train=8, test=5, rl=2, progress=False)
    assert (again.written, again.kept) == (13, 2)
    assert not list(tmp_path.rglob("*.part"))
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(files.root)) for path in files.root.rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / name).read_bytes() == (files.root / name).read_bytes()
    before = again.train.stat().st_mtime_ns
    assert write_events_world(tmp_path, train=8, test=5, rl=2, progress=False).written == 0
    assert again.train.stat().st_mtime_ns == before


def test_worlds_do_not_mix_in_a_folder(tmp_path):
    write_events_world(tmp_path, train=1, test=1, size=32, progress=False)
    with pytest.raises(ConfigError, match="other settings"):
        write_world(tmp_path, train=1, test=1, size=32, progress=False)
    with pytest.raises(ConfigError, match=r'"seed": 0.*"seed": 1'):
        write_events_world(tmp_path, train=1, test=1, seed=1, size=32, progress=False)
    write_world(tmp_path, train=1, test=0, size=32, progress=False, overwrite=True)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"train.jsonl", "test.jsonl", "world.json", "train-00000.mp4"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": -1, "test": 1}, "train=-1"),
        ({"train": 0, "test": 0}, "has to be positive"),
        ({"train": 1, "test": 0, "seed": -2}, "seed=-2"),
        ({"train": 1, "test": 0, "size": 100}, "multiple of 32"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        write_events_world(tmp_path / "world", **settings, progress=False)
    assert not (tmp_path / "world").exists()


def test_bad_episode_arguments_are_named():
    with pytest.raises(ConfigError, match="split='validation'"):
        make_event_episode("validation", 0)
    with pytest.raises(ConfigError, match="number=-1"):
        make_event_episode("train", -1)
    with pytest.raises(ConfigError, match="multiple of 32"):
        make_event_episode("train", 0, size=33)


def test_states_are_read_as_one_record_of_arrays(train):
    shapes = {
        name: getattr(train[0].states, name).shape for name in (f.name for f in dataclasses.fields(train[0].states))
    }
    assert shapes["positions"] == shapes["velocities"] == (10, 3, 2)
    assert shapes["wall_hits"] == (10, 3, 4)
    assert shapes["contacts"] == (10, 3, 3)
    assert shapes["gate_open"] == (10,)
    assert {shapes[name] for name in ("hidden", "gate_hits", "clear_cut", "flips")} == {(10, 3)}
    assert train[0].colours.shape == (10, 3)


def test_the_command_writes_the_world(tmp_path, capsys):
    jsonargparse.CLI(world, args=[str(tmp_path), "--train=2", "--test=1", "--task=events", "--size=32", "--seed=3"])
    told = capsys.readouterr().out
    assert f"train: 2 records in {tmp_path / 'train.jsonl'}" in told
    assert "futurebench: 1 records" in told
    assert "clips: 3 written and 0 kept" in told
    assert json.loads((tmp_path / "world.json").read_text()) == {
        "world": "events",
        "version": events.MANIFEST_VERSION,
        "seed": 3,
        "size": 32,
    }
