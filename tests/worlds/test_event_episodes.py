"""Episodes of the world of events in words and as records."""

import re

import numpy as np
from world_reading import records_of, window_of, zone_name

from futurel1.data import open_records, parse_record, parse_rl_prompt
from futurel1.data.benchmarks import parse_futurebench
from futurel1.worlds import look, make_event_episode

COLOURS, WALLS = list(look.COLOURS), look.WALLS


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
    assert [prompt.info.options for prompt in prompts] == [record["options"] for record in records_of(files.train)]
    bench = parsed(files.futurebench, parse_futurebench)
    assert [prompt.info.answer for prompt in bench] == [record["letter"] for record in records_of(files.test)]
    assert [prompt.info.split for prompt in bench] == [r["question_type"] for r in records_of(files.test)]
    assert [p.info.answer for p in parsed(files.futurebench, parse_rl_prompt)] == [p.info.answer for p in bench]


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
