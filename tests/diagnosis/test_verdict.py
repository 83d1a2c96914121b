"""Sentences say what the intervals carry, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from futurel1.diagnosis import Change, Diagnosis, Effect, Probe
from futurel1.diagnosis.verdict import verdict_of
from futurel1.metrics.functional import Difference

LOWER, HIGHER, NOTHING = (
    Difference(-0.3, -0.4, -0.2, 0.01),
    Difference(0.59, 0.48, 0.69, 0.01),
    Difference(0, -0.1, 0.1, 1),
)
OWN = Effect("none", 100, 60, followed=12)


def effect(name: str, difference: Difference, gain: Difference | None = None, followed: int = 0) -> Effect:
    return Effect(name, 100, 30, 50, 0.5, difference, followed, gain)


def change(name: str, gain: Difference, distance: float = 0.2) -> Change:
    return Change(name, 50, 80, 0.83, 0.24, gain, distance, 0.3)


def read(name: str, gain: Difference) -> Probe:
    return Probe(name, 200, 50, 0.9, 0.01, 0.93, 0.27, gain)


def test_what_a_probe_reads() -> None:
    (both,) = verdict_of([OWN], [], [read("latents", HIGHER), read("words after", HIGHER), read("noise", NOTHING)])
    assert both == (
        "A linear probe reads the zones of things in the future frame: 93% from latents, 93% from words after "
        "(shuffled labels: at most 27%). Zones are read no better than with shuffled labels from noise."
    )


def test_needed_in_full_in_part_or_not_at_all() -> None:
    (full,) = verdict_of([OWN, effect("zero", LOWER), effect("noise", LOWER)], [])
    assert full.startswith("Answers need what the latents say")
    assert "zeros -30.0 (-40.0 to -20.0), noise" in full
    (part,) = verdict_of([OWN, effect("zero", LOWER), effect("noise", NOTHING)], [])
    assert "in part: accuracy falls under zeros and not under the others" in part
    (none,) = verdict_of([OWN, effect("zero", NOTHING), effect("noise", NOTHING)], [])
    assert none.startswith("Answers do not measurably need the latents")
    (form,) = verdict_of([OWN, effect("zero", NOTHING), effect("markers", LOWER)], [])
    assert form.startswith("Answers need something between the markers, but not what the latents say")
    assert verdict_of([OWN], []) == ()


def test_swaps_that_are_followed_or_not() -> None:
    (followed,) = verdict_of([OWN, effect("swap", LOWER, HIGHER, 71)], [])
    assert followed == (
        "Answers follow the latents: fed another future, the model gives that future's answer to 71 of 100 questions, "
        "with its own latents to 12 (+59.0 (+48.0 to +69.0) points)."
    )
    # what a model says without reading anything is no following
    hollow = replace(effect("swap", LOWER, HIGHER, 71), control="zero", over_control=NOTHING)
    (idle,) = verdict_of([OWN, hollow], [])
    assert "do not measurably follow" in idle
    assert "; with zeros to 71 (+0.0 (-10.0 to +10.0) points)." in idle
    (ignored,) = verdict_of([OWN, effect("swap", LOWER, NOTHING, 14)], [])
    assert "do not measurably follow the latents" in ignored
    _, reads = verdict_of([OWN, effect("zero", NOTHING), effect("swap", LOWER, HIGHER, 71)], [])
    assert reads.startswith("The model reads the frames that it is fed, though it does not need what its own latents")


def test_the_ceiling_and_changes() -> None:
    found = verdict_of(
        [OWN, effect("oracle", HIGHER)], [change("moved", HIGHER), change("recoloured", NOTHING, distance=0.02)]
    )
    assert "better imagination would help" in found[0]
    assert "Imagined frames follow the video when it is moved: 83% are nearer" in found[1]
    assert "0.10 times as far as moving what is asked about" in found[2]
    same = verdict_of([OWN], [change("moved", NOTHING, distance=0.0), change("recoloured", NOTHING, distance=0.0)])
    assert same[1].endswith("the imagined frames stay the same (cosine distance 0.000).")
    still = verdict_of([OWN, effect("oracle", NOTHING)], [change("reversed", NOTHING)])
    assert "would not measurably help" in still[0]
    assert "do not measurably follow the video when it is reversed" in still[1]


def test_text_markdown_and_json_hold_the_same_cells(tmp_path: Path) -> None:
    effects = (OWN, effect("swap", LOWER, HIGHER, 71))
    changes = (change("moved", HIGHER),)
    probes = (read("latents", HIGHER), read("noise", NOTHING))
    verdict = verdict_of(effects, changes, probes)
    made = Diagnosis("m", tmp_path, ("q.jsonl",), effects, changes, probes, {"oracle": "no frames"}, verdict)
    plain = made.to_dict()
    for table in plain["tables"]:
        for row in table["rows"]:
            assert f"| {' | '.join(row)} |" in made.markdown()
            assert all(cell in str(made) for cell in row)
    assert plain["effects"][1]["gain"]["low"] == 0.48
    for sentence in made.verdict:
        assert sentence in made.markdown()
        assert sentence in str(made)
    assert "left out: oracle: no frames" in str(made)
