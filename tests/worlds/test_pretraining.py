"""Records for pretraining: all of them show, or imagine, what they tell."""

import re
from collections import Counter

import numpy as np
import pytest
from world_reading import records_of

from futurel1.data import open_records
from futurel1.data.chat import ChatEncoder
from futurel1.models import load_processor
from futurel1.worlds import (
    event_questions,
    layouts_of,
    look,
    make_event_episode,
    make_event_episodes,
    palette,
    write_world,
)
from futurel1.worlds.pretraining import pretraining_records
from futurel1.worlds.storage import PRETRAINING_KINDS

COLOURS, FORMS, ZONES = list(look.COLOURS), look.FORMS, look.ZONES
CLIPS = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("pretrain"), train=0, test=0, pretrain=CLIPS, size=64, progress=False)


@pytest.fixture(scope="module")
def source(files):
    return open_records([files.root / f"pretrain_{kind}.jsonl" for kind in PRETRAINING_KINDS])


@pytest.fixture(scope="module")
def episodes():
    """Episodes of two blocks, each with its records."""
    return [(e, pretraining_records(e, f"videos/{e.id}.mp4")) for e in make_event_episodes("pretrain", 128, size=64)]


def test_each_clip_has_a_record_of_every_kind(files):
    for kind in PRETRAINING_KINDS:
        records = records_of(files.root / f"pretrain_{kind}.jsonl")
        assert [record["id"] for record in records] == [f"pretrain-{number:05d}-{kind}" for number in range(CLIPS)]
        assert [record["video"] for record in records] == [f"videos/pretrain-{n:05d}.mp4" for n in range(CLIPS)]
    clips = sorted(path.name for path in files.videos.glob("pretrain-*.mp4"))
    assert clips == [f"pretrain-{number:05d}.mp4" for number in range(CLIPS)]
    assert (files.written, files.kept) == (CLIPS, 0)
    assert not (files.root / "pretrain_open.jsonl").exists()


def test_clips_have_the_looks_and_layouts_of_training_and_starts_of_their_own(episodes, train, test):
    looks = {
        (COLOURS[colour], form)
        for episode, _ in episodes
        for row in episode.colours
        for colour, form in zip(row, FORMS, strict=True)
    }
    assert looks == set(palette("train"))
    assert {episode.layout for episode, _ in episodes} <= set(layouts_of("train"))
    starts = {episode.states.positions[0].tobytes() for episode, _ in episodes}
    for part in (train, test, make_event_episodes("rl", 128)):
        assert not starts & {episode.states.positions[0].tobytes() for episode in part}


def test_every_record_parses_and_is_encoded_with_its_spans(source):
    processor = load_processor("tiny@random")
    encoder = ChatEncoder(processor, max_latent_tokens=1)
    assert len(source) == 5 * CLIPS
    for number in range(len(source)):
        sample = source.sample(number)
        kind = PRETRAINING_KINDS[number // CLIPS]
        shown = {"imagine": [5, 6, 7], "watch": [3, 4, 5, 6, 7, 8], "describe": [], "answer": []}
        shown["tell"] = [5, 6, 7][: 1 + number % CLIPS % 3]
        assert [frame.pool_index for frame in sample.hints] == shown[kind]
        spans = len(shown[kind])
        encoded = encoder.encode(sample)
        response = encoded.input_ids[encoded.prompt_length :]
        assert int((response == encoder.tokens.start_id).sum()) == spans
        assert int((response == encoder.tokens.end_id).sum()) == spans
        grids = [] if encoded.image_grid_thw is None else encoded.image_grid_thw.tolist()
        assert grids == [[1, 4, 4]] * len(sample.observed)
        assert (encoded.hint_grid_thw is None) == (spans == 0)
        text = processor.tokenizer.decode(response)
        assert ("<answer>" in text) == (kind not in ("imagine", "watch"))
        if kind not in ("imagine", "watch"):
            assert f"<answer>{sample.answer}</answer>" in text
        if kind == "describe":
            assert "<reason>" not in text  # it tells at once what it sees
        assert len(encoded) < 1024


def test_the_end_is_imagined_from_the_observed_frames_alone(episodes):
    for episode, records in episodes:
        assert [records[name]["image"] for name in ("imagine", "tell")] == [[1, 2, 3, 4]] * 2
        assert records["imagine"]["reasoning_image"] == [5, 6, 7]
        assert records["tell"]["reasoning_image"] == [5, 6, 7][: 1 + episode.number % 3]
        assert set(records["imagine"]) == {"id", "video", "image", "reasoning_image"}  # an unlabelled video


def check_caption(text, episode, step, first):
    """Whether a text says where all shapes are in a step, `first` and then in the order of their pairs of colours."""
    names = [name for part in text.split(", ") for name in episode.asked.names if part.startswith(f"{name} ")]
    assert sorted(names) == sorted(episode.asked.names)
    assert names[0] == first
    assert np.diff([COLOURS.index(name.split()[0]) % 3 for name in names[1:]]) > 0
    for name, part in zip(names, text.split(", "), strict=True):
        x, y = episode.states.positions[step, episode.asked.names.index(name)]
        assert part == f"{name} {'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def test_imagined_frames_are_described_as_they_are(episodes, source):
    for episode, records in episodes:
        tell = records["tell"]
        question, response = (turn["value"] for turn in tell["conversations"])
        told = [text.strip() for text in response.split("<image>")]
        first = episode.asked.names[episode.asked.target]
        ahead = len(tell["reasoning_image"])
        _, _, asked = question.rpartition("<image>\n")
        asked, *listed = asked.split("\n")
        assert asked == f"Imagine the zones after {ahead} step{'s' if ahead > 1 else ''}."
        if episode.number // 3 % 2:
            assert {option[3:] for option in listed} == {"top left", "top right", "bottom left", "bottom right"}
        else:
            assert listed == []
        for text, step in zip(told, range(4, 5 + ahead), strict=True):
            check_caption(text, episode, step, first)
        assert tell["answer"] == told[-1]
    sample = source.sample(PRETRAINING_KINDS.index("tell") * CLIPS + 2)
    parts = sample.turns[-1].parts
    assert [getattr(part, "pool_index", "text") for part in parts] == ["text", 5, "text", 6, "text", 7, "text"]
    episode = make_event_episode("pretrain", 2)
    check_caption(parts[2].strip(), episode, 5, episode.asked.names[episode.asked.target])


def test_a_description_is_of_every_frame_that_is_shown(episodes):
    windows = Counter()
    for episode, records in episodes:
        record = records["describe"]
        human, gpt = (turn["value"] for turn in record["conversations"])
        labels = [int(label) for label in re.findall(r"^frame_(\d)\n<image>$", human, re.MULTILINE)]
        assert record["image"] == labels == list(range(labels[0], labels[0] + 2))
        assert gpt == ""
        for text, step in zip(record["answer"].split("; "), labels, strict=True):
            check_caption(text, episode, step, episode.asked.names[episode.asked.target])
        windows[labels[0]] += 1
    assert set(windows) == {1, 2, 3, 4, 5, 6, 7}


def test_questions_are_answered_with_the_frames_that_answer_them_in_view(episodes):
    steps, targets, answers, arrivals = Counter(), Counter(), Counter(), Counter()
    for episode, records in episodes:
        answer = records["answer"]
        shown = answer["image"]
        assert shown == list(range(1, shown[-1] + 1))
        assert shown[-1] in (5, 6, 7)
        human, gpt = (turn["value"] for turn in answer["conversations"])
        assert human.count("<image>") == len(shown)
        question, *options = human.rpartition("<image>\n")[2].split("\n")
        told = re.fullmatch(
            r"After 4 steps the (.+) is in the (.+) zone. Where is the (.+) when it gets there\?", question
        )
        if told:
            other, later, name = told.groups()
            path = [ZONES[episode.zone(episode.asked.names.index(other), step)] for step in range(4, 9)]
            arrival = path.index(later)
            assert later == path[-1]
            assert [zone == later for zone in path] == [False] * arrival + [True] * (5 - arrival)
            assert shown[-1] == 7
            for text, step in zip(gpt.split("\n"), range(4, 8), strict=True):
                check_caption(text, episode, step, name)
            assert ZONES[episode.zone(episode.asked.names.index(name), 4 + arrival)] == answer["answer"]
            arrivals[arrival] += 1
        else:
            name, hop = re.fullmatch(r"In which zone is the (.+) after (\d) steps?\?", question).groups()
            assert shown[-1] == 4 + int(hop)
            assert ZONES[episode.zone(episode.asked.names.index(name), shown[-1])] == answer["answer"]
            check_caption(gpt, episode, shown[-1], name)
            steps[shown[-1]] += 1
            answers[answer["answer"]] += 1
        assert [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]
        assert sorted(option[3:] for option in options) == sorted(ZONES)
        assert answer["reasoning_image"] == []
        targets[episode.asked.names.index(name)] += 1
    assert min(steps.values()) > len(episodes) / 6
    assert sum(arrivals.values()) > len(episodes) / 10
    assert set(arrivals) == {2, 3}
    assert set(steps) == {5, 6, 7}
    assert min(targets.values()) > len(episodes) / 5
    assert min(answers.values()) > len(episodes) / 8
    assert len(answers) == 4


def test_records_depend_on_the_clip_alone():
    records = pretraining_records(make_event_episode("pretrain", 5), "a")
    event_questions.sample_block.cache_clear()
    assert pretraining_records(make_event_episode("pretrain", 5, size=32), "a") == records
    assert pretraining_records(make_event_episode("pretrain", 6), "a") != records
    assert pretraining_records(make_event_episode("pretrain", 5, seed=1), "a") != records
