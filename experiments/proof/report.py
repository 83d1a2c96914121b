"""The page of a plan, made from result files only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.proof import figures
from experiments.proof.diagnoses import diagnoses_of, diagnosis_tables
from experiments.proof.formatting import HEADINGS, markdown, over, p_text, points
from experiments.proof.records import MISMATCHED, SPLITS
from experiments.proof.results import Bench, Results, current_results, metrics_of_tests, read_results, splits_asked
from experiments.proof.stages import BACKBONE, Plan, diagnosed_runs, seeds_of, stages_testing
from experiments.proof.statistics import holm, paired_difference, seed_mean
from futurel1.metrics.functional import Difference

MARKER = "<!-- hand-written below -->"
DIFFERENCE = ("difference", "p")
PUBLISHED = (
    "Qwen3-VL-8B zero-shot", "text-only SFT, same 50K", "Future-L1-SFT", "Future-L1-SFT on random 50K",
    "text-only SFT + DAPO", "Future-L1-SFT + GRPO", "Future-L1-SFT + DAPO", "Future-L1-SFT + DAPO + R_ctr",
    "Future-L1-SFT + DAPO + R_div", "Future-L1-RL",
)  # fmt: skip
"""The paper's rows that correspond to rows of our pages."""


def write_report(bench: Bench, plan: Plan) -> None:
    """Write the page and its figures; text below the marker in the page is kept."""
    results = current_results(bench)
    document, pictures = bench.places.page, bench.places.figures
    kept = ""
    if document.is_file():
        _, _, kept = document.read_text(encoding="utf-8").partition(MARKER)
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw_all(results, plan, pictures)
    beside = os.path.relpath(pictures, document.parent)
    parts = page(results, plan, bench, {name: f"{beside}/{name}.png" for name in drawn})
    document.write_text("\n\n".join([*parts, MARKER]) + (kept or "\n"), encoding="utf-8")


def page(results: Results, plan: Plan, bench: Bench, pictures: Mapping[str, str]) -> list[str]:
    """The paragraphs of the page."""

    def picture(name: str, text: str) -> list[str]:
        return [f"![{text}]({pictures[name]})"] if name in pictures else []

    parts = [f"# {plan['title']}", *_about(results, plan, bench)]
    parts += ["## Accuracy", _ACCURACY, main_table(results, plan), *picture("accuracy", "accuracy")]
    parts += ["## Claims", _CLAIMS, claim_table(results, plan), *picture("rewards", "rewards")]
    if "curate" in results and "probe" in results:
        parts += ["## Curation", _CURATION, curation_table(results)]
    parts += ["## Spans", "Latent spans per response.", span_table(results, plan), *picture("spans", "spans")]
    if plan.get("ablations"):
        parts += ["## Ablations", "Differences are to the first row of each table."]
        for title, runs in plan["ablations"].items():
            parts += [f"### {title}", ablation_table(results, plan, runs)]
    parts += ["## Are the latents used?", _CONTROLS]
    labels = _labels(plan)
    for run in plan["controls"]:
        parts += [f"### Latents of {labels[run]} replaced", control_table(results, plan, run)]
    parts += diagnosis_section(results, plan)
    parts += ["## Do they show the future?", _RETRIEVAL, retrieval_table(results, plan)]
    held = held_table(results, plan)
    parts += [_HELD, held] if held else []
    parts += picture("imagined", "observed frames, nearest training frames, true future frames")
    parts += ["## The paper", _PAPER, published_table()] if plan.get("paper") else []
    return parts


def diagnosis_section(results: Results, plan: Plan) -> list[str]:
    """Paragraphs about the runs that the plan diagnoses; none where it diagnoses no run."""
    runs, labels = diagnosed_runs(plan), _labels(plan)
    if not runs:
        return []
    parts = ["## Do answers follow the latents, and latents the video?", _DIAGNOSIS.format(**plan["diagnose"])]
    for run in runs:
        found = diagnoses_of(results, plan, run)
        parts += [f"### Diagnosis of {labels[run]}", *(diagnosis_tables(found) if found else ["No seed so far."])]
    return parts


_CLAIMS = (
    "The comparisons that this page makes claims about; `comparisons` in `plan.yaml` names them. Differences as above. "
    "Corrected p: by Holm's method over all rows of this table, so that 0.05 is the chance that any of them is called "
    "significant without being true. What the other tables compare is exploratory."
)
_CURATION = (
    "The backbone answers every candidate several times, drawn at random, without its future frames and with them: "
    "percent of right responses. Chosen are the candidates that gain most by the frames, of those that are not too "
    "easy without them (`futurel1 curate`). A share of the candidates, whatever their split, has another's clip, as "
    "happens where records are made by machines. Random records are drawn from all candidates, clean ones from those "
    "with their own clip."
)
_CONTROLS = (
    "The same questions, with what the model is fed in the place of its latents: zeros, its mean latent, noise with "
    "the mean and spread of its latents, the latents of a question about another clip, or none between the markers. "
    "Drop: its 95% interval is over seeds and questions together, as above; flips are mean numbers of questions; "
    "changed text is the share of responses that read otherwise at all."
)
_DIAGNOSIS = (
    "[`futurel1 diagnose`](diagnose.md) asks {count} questions about clips that have another future too, with the "
    "model's own latents and with others in their place: zeros and the like, the features of the true future, and "
    "those of the other future, in which another answer is right. Then it asks about changed videos, and fits probes. "
    "Shares are means over seeds ± their 95% interval; differences are to the model's own latents (of videos: to the "
    "unchanged one; of probes: to shuffled labels), in points, with an interval over seeds and questions together. "
    "All of it is exploratory."
)
_RETRIEVAL = (
    "Share of imagined spans whose mean is nearest, by cosine, to the mean feature of their own true frame among the "
    "future frames of all test questions. Pictures show for each span the future frame of a training clip that is "
    "nearest to it."
)
_HELD = (
    "Percent of questions whose answer is in the features of the frame asked about, read by undoing the scene code "
    "that the tower was trained on: of the true frame; of the imagined one, among the questions where that frame was "
    "imagined, whose share stands above. Below it what the same runs answer rightly."
)
_PAPER = (
    "Future-L1, arXiv 2606.05769: FutureBench, 8B parameters, without seeds or intervals. For comparison of the order "
    "of rows; the numbers have nothing else in common with those above."
)


def _about(results: Results, plan: Plan, bench: Bench) -> list[str]:
    total, seconds = len(bench.stages), sum(result["seconds"] for result in results.values())
    machines = sorted({_machine(result["machine"]) for result in results.values()})
    commits = sorted({f"{result['commit']}{'+' if result['dirty'] else ''}" for result in results.values()})
    stale = sorted(bench.stages.keys() & read_results(bench.places).keys() - results.keys())
    world = plan["world"]
    curated = results["curate"]["metrics"]["records"]["all"] if "curate" in results else None
    lines = [
        f"Written by `make proof` from the files in `{plan['results']}`; `make proof ARGS=--again` makes "
        "anew what was made elsewhere. How to read and to repeat it: "
        "[experiments/proof](../experiments/proof/README.md).",
        f"{len(results)} of {total} stages, whose times add up to {seconds / 3600:.1f} hours (`make proof` runs two at "
        f"once); seeds {', '.join(map(str, plan['seeds']))}{_more_seeds(plan)}. "
        f"World: {world['train']} training, {world['test']} test and {world['rl']} RL clips of {world['size']} pixels"
        + ("." if curated is None else f"; {curated} curated records."),
    ]
    if machines:
        lines.append(f"Machine: {'; '.join(machines)}. Commit (+ with changes): {', '.join(commits)}.")
    if stale:
        lines.append(f"Left out, as made with other settings: {', '.join(stale)}.")
    return lines


def _more_seeds(plan: Plan) -> str:
    more = plan.get("more_seeds", {})
    if not more.get("seeds"):
        return ""
    labels = _labels(plan)
    return f"; also {', '.join(map(str, more['seeds']))} for {', '.join(labels[run] for run in more['runs'])}"


def _machine(machine: Mapping[str, Any]) -> str:
    device = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    return f"{device}, PyTorch {machine['torch']}, transformers {machine['transformers']}"


_ACCURACY = (
    "Percent of questions answered rightly (chance 25), greedy; mean over seeds ± its 95% interval (Student's t). "
    "Difference: to the row above, in points, of the seeds that both have, with its 95% interval and two-sided p. Both "
    "hold for other seeds and other questions: seeds and questions are crossed random effects of an analysis of "
    "variance, paired by seed and question, with Satterthwaite's degrees of freedom. These p are of single tables and "
    "not corrected. "
    "No answer: percent of questions. Tokens, latents included, and seconds are per question. "
    "Without SFT there is one greedy run, whatever the seed."
)


# ----------------------------------------------------------------------------------------------------------- tables


def main_table(results: Results, plan: Plan) -> str:
    """The rows of the plan, each compared with the one above."""
    rows, above, headings = [], "", _headings(results, plan)
    for run, label in plan["rows"].items():
        found = metrics_of_tests(results, plan, run)
        difference = compared(results, plan, run, above) if above else None
        cells = [label, str(len(found)), *(over(found, _accuracy(name)) for name in headings)]
        cells += _difference(difference)
        unanswered = [100 * test["unanswered"] / len(test["correct"]) for test in found]
        cells.append(f"{seed_mean(unanswered).value:.1f}" if unanswered else "-")
        for name, digits in (("tokens", 1), ("seconds_per_sample", 3)):
            values = [test[name] for test in found]
            cells.append(f"{seed_mean(values).value:.{digits}f}" if values else "-")
        rows.append(cells)
        above = run
    columns = [*DIFFERENCE, "no answer", "tokens", "seconds"]
    return markdown(["", "seeds", *headings.values(), *columns], rows)


def claim_table(results: Results, plan: Plan) -> str:
    """The pairs of rows that the plan compares, with p-values corrected for their number."""
    labels = _labels(plan)
    found = [(pair, compared(results, plan, pair[0], pair[1])) for pair in plan["comparisons"]]
    corrected = iter(holm([difference.p for _, difference in found if difference is not None]))
    rows = []
    for (first, second, *label), difference in found:
        name = label[0] if label else f"{labels[first]} - {labels[second]}"
        rows.append([name, *_difference(difference), "-" if difference is None else p_text(next(corrected))])
    return markdown(["", *DIFFERENCE, "corrected p"], rows)


def curation_table(results: Results) -> str:
    """Accuracy of the backbone on the candidates, and the number of chosen records, per split."""
    probe, curate = results["probe"]["metrics"], results["curate"]["metrics"]
    labels = {**{name: HEADINGS[name] for name in SPLITS}, MISMATCHED: "another's clip", "all": "all"}
    rows = []
    for name, label in labels.items():
        shares = [probe[shown][name] for shown in ("base", "hint")]
        counts = [str(found[name]) for found in (probe["candidates"], curate["records"])]
        rows.append(
            [label, counts[0], *("-" if share is None else f"{100 * share:.1f}" for share in shares), counts[1]]
        )
    return markdown(["", "candidates", "right without hints", "right with hints", "chosen"], rows)


def span_table(results: Results, plan: Plan) -> str:
    """Spans per response, by split."""
    rows, headings = [], _headings(results, plan)
    for run, label in plan["rows"].items():
        found = metrics_of_tests(results, plan, run)
        rows.append([label, str(len(found)), *(over(found, _spans(name), 2) for name in headings)])
    return markdown(["", "seeds", *headings.values()], rows)


def ablation_table(results: Results, plan: Plan, runs: Mapping[str, str]) -> str:
    """Runs that differ in one setting, each compared with the first one."""
    first, *_ = runs
    rows = []
    for run, label in runs.items():
        found = metrics_of_tests(results, plan, run)
        difference = None if run == first else compared(results, plan, run, first)
        rows.append([label, str(len(found)), over(found, _accuracy("all")), *_difference(difference)])
        rows[-1] += [over(found, _spans("all"), 2), over(found, lambda test: test["latents"]["all"], 2)]
    return markdown(["", "seeds", "average", *DIFFERENCE, "spans", "latents"], rows)


def control_table(results: Results, plan: Plan, run: str) -> str:
    """Effects of the interventions on one run."""
    seeds = [seed for seed in plan["seeds"] if {f"controls-{run}-s{seed}", f"test-{run}-s{seed}"} <= results.keys()]
    rows = []
    for kind in plan["interventions"]:
        effects = [results[f"controls-{run}-s{seed}"]["metrics"].get(kind) for seed in seeds]
        pairs = [
            (effect, results[f"test-{run}-s{seed}"]["metrics"])
            for effect, seed in zip(effects, seeds, strict=True)
            if effect is not None
        ]
        found = [effect for effect, _ in pairs]
        difference = _paired([test for _, test in pairs], found)
        cells = [kind, str(len(found)), over(found, lambda effect: 100 * effect["accuracy"])]
        cells.append("-" if difference is None else points(difference))
        cells.append(over(found, lambda effect: effect["right_to_wrong"]))
        cells.append(over(found, lambda effect: effect["wrong_to_right"]))
        cells.append(over(found, lambda effect: 100 * effect["changed_text"]))
        rows.append(cells)
    columns = ["accuracy", "drop", "right to wrong", "wrong to right", "changed text, %"]
    return markdown(["fed", "seeds", *columns], rows)


def retrieval_table(results: Results, plan: Plan) -> str:
    """How often a span is nearest to its own frame."""
    rows, labels = [], _labels(plan)
    for run in plan["controls"]:
        names = [f"retrieval-{run}-s{seed}" for seed in plan["seeds"]]
        found = [results[name]["metrics"] for name in names if name in results]
        with_spans = [one for one in found if one["retrieval"] is not None]
        rows.append([labels[run], str(len(found)), over(with_spans, lambda one: 100 * one["retrieval"])])
        rows[-1] += [over(found, lambda one: 100 * one["chance"], 2), over(found, lambda one: one["compared"], 0)]
        rows[-1] += [over(with_spans, lambda one: one["cosine"], 3)]
        rows[-1] += [over(with_spans, lambda one: one["cosine_others"], 3)]
    columns = ["nearest, %", "chance, %", "spans", "cosine to own frame", "cosine to others"]
    return markdown(["", "seeds", *columns], rows)


def held_table(results: Results, plan: Plan) -> str:
    """Shares of true and of imagined frames that contain the answer, and of correct answers; empty without codes."""
    rows, labels, headings = [], _labels(plan), _headings(results, plan)
    for run in plan["controls"]:
        pairs = [
            (results.get(f"retrieval-{run}-s{seed}"), results.get(f"test-{run}-s{seed}")) for seed in plan["seeds"]
        ]
        found = [(one["metrics"], test["metrics"]) for one, test in pairs if one and test]
        found = [(one, test) for one, test in found if "spans_hold" in one]
        if not found:
            continue
        parts = {
            "true frames hold it": [one["frames_hold"] for one, _ in found],
            "frame imagined": [one["spans_show"] for one, _ in found],
            "imagined frames hold it": [one["spans_hold"] for one, _ in found],
            "answered": [test["accuracy"] for _, test in found],
        }
        for label, shares in parts.items():
            cells = [over(shares, _percent(split)) for split in headings]
            rows.append([f"{labels[run]}: {label}", str(len(found)), *cells])
    return markdown(["", "seeds", *headings.values()], rows) if rows else ""


def published_table() -> str:
    """The paper's FutureBench rows, and its spans per response."""
    from futurel1.metrics.published import FUTUREBENCH, SPANS_PER_RESPONSE

    by_name = {row.model: row.values for row in FUTUREBENCH.rows}
    rows = [
        [name, *("-" if value is None else f"{value:.1f}" for value in by_name[name])]
        for name in PUBLISHED
        if name in by_name
    ]
    table = markdown(["", *(column.heading for column in FUTUREBENCH.columns)], rows)
    spans = ", ".join(f"{value:.2f} ({HEADINGS[name]})" for name, value in SPANS_PER_RESPONSE.items())
    return f"{table}\n\nSpans per response: {spans}."


# ---------------------------------------------------------------------------------------------------------- numbers


def compared(results: Results, plan: Plan, first: str, second: str) -> Difference | None:
    """Difference of two runs over seeds and questions; None if no seed has tests of both."""
    one, other = (_by_seed(results, plan, run) for run in (first, second))
    pairs = [(test, other[seed]) for seed, test in one.items() if seed in other]
    return _paired([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _by_seed(results: Results, plan: Plan, run: str) -> dict[int, Mapping[str, Any]]:
    """Test metrics of a run by seed, of those that were tested; the backbone's single test stands for all seeds."""
    seeds, names = seeds_of(run, plan), stages_testing(run, plan)
    names = names * len(seeds) if run == BACKBONE else names
    return {seed: results[name]["metrics"] for seed, name in zip(seeds, names, strict=True) if name in results}


def _paired(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Difference | None:
    if not first or not second:
        return None
    return paired_difference(*([[int(mark) for mark in one["correct"]] for one in side] for side in (first, second)))


def _accuracy(split: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda test: _percent(split)(test["accuracy"])


def _percent(split: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda shares: None if shares[split] is None else 100 * float(shares[split])


def _spans(split: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda test: test["spans"][split]


def _difference(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["-"] * len(DIFFERENCE)
    return [points(difference), p_text(difference.p)]


def _headings(results: Results, plan: Plan) -> dict[str, str]:
    """Heading of each split that is asked about, and of all together."""
    return {name: HEADINGS[name] for name in (*splits_asked(results, plan), "all")}


def _labels(plan: Plan) -> dict[str, str]:
    """Label of each run, from the main table or else from an ablation."""
    labels = {run: label for table in plan.get("ablations", {}).values() for run, label in table.items()}
    return {**labels, **plan["rows"]}
