"""Questions about the world of events: right answers, and no text that gives one away."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from world_reading import TEST, TRAIN, window_of, zone_name

from futurel1.errors import ConfigError
from futurel1.worlds import collisions, event_questions, event_scenes, look, make_event_episode, make_event_episodes
from futurel1.worlds.collisions import HIGH, LOW
from futurel1.worlds.event_questions import question_cells, sample_question

COLOURS, ZONES, WALLS = list(look.COLOURS), look.ZONES, look.WALLS


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
            assert along[opening - 1 : opening + 1, shape].min() - collisions.REACH < event_scenes.FASTEST * np.sqrt(3)
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
    assert event_questions.arrivals(there).tolist() == np.array(expected, bool).tolist()
    assert (event_questions.arrivals(np.stack([there, there])) == event_questions.arrivals(there)).all()


def test_kinds_that_are_none():
    with pytest.raises(ConfigError, match="zone, event, pair, gate"):
        make_event_episode("train", 0, kinds=())
    with pytest.raises(ConfigError, match=r"kinds=.'zone', 'zone'.*each once"):
        make_event_episode("train", 0, kinds=("zone", "zone"))


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


@pytest.mark.parametrize("kinds", [event_questions.KINDS, ("zone",)])
def test_no_template_option_or_word_is_right_more_often_than_chance_in_many_questions(kinds):
    """Texts are sampled before scenes, so that thousands of them cost nothing."""
    rng = np.random.default_rng(0)
    cells = question_cells(kinds)
    asked = [sample_question("train", cells[number // 4 % len(cells)], number % 4, rng) for number in range(12800)]
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


def test_each_question_keeps_the_text_that_was_sampled_for_it(train):
    """Scenes are fitted to the questions, so no question can be dropped or changed because its answer is rare."""
    rng = np.random.default_rng(np.random.SeedSequence([0, 0, 1], spawn_key=(1,)))
    cells = question_cells(event_questions.KINDS)
    sampled = [sample_question("train", cells[cell // 4], cell % 4, rng) for cell in rng.permutation(64).tolist()]
    assert [episode.asked for episode in train[64:128]] == sampled


def test_repeating_the_last_seen_zone_is_at_chance(train, test):
    asked = [episode for episode in [*train, *test] if episode.asked.kind == "zone"]
    kept = [zone_name(e.states.positions[4, e.asked.target]) == e.options[e.answer] for e in asked]
    assert abs(np.mean(kept) - 0.25) < 3 * np.sqrt(0.25 * 0.75 / len(asked))
