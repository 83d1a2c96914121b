"""Run a plan and write its page: `python -m experiments.proof miniature`, from the root of the repository."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.proof.report import write_report
from experiments.proof.results import Bench, Places, read_results
from experiments.proof.run import clock, run_stages, states
from experiments.proof.stages import FOLDER, build_stages, load_plan, plan_file


def main(args: Sequence[str] | None = None) -> None:
    """Run stages or show their state, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m experiments.proof", description=__doc__)
    add = parser.add_argument
    add("plan", type=plan_file, help="miniature, atari, or the file of another plan, such as one for choosing settings")
    add("--only", nargs="+", default=[], metavar="GLOB", help="stages to run, such as 'test-*', with what they need")
    add("--seeds", nargs="+", type=int, help="seeds to run, of the plan's or others; the page shows the plan's")
    add("--jobs", type=int, default=1, help="stages at once, each with its share of the cores (default: 1)")
    add("--minutes", type=float, help="start no new stage after so many minutes")
    add("--list", action="store_true", help="show all stages, and how far they are")
    add("--report", action="store_true", help="only write the page and its figures from the results that are there")
    add("--again", action="store_true", help="also run stages whose result came with the repository")
    add("--quick", action="store_true", help="check the plumbing in minutes; the numbers mean nothing")
    add("--root", type=Path, help="write runs, results and page into this folder")
    options = parser.parse_args(args)
    if not FOLDER.is_dir():
        parser.error(f"run it from the root of the repository: there is no {FOLDER} here")
    if not options.plan.is_file():
        parser.error(f"there is no plan {options.plan}")
    if options.quick and options.root is None:
        parser.error("--quick needs --root, a folder for what it writes")
    if options.jobs < 1 or (options.quick and options.jobs > 1):
        parser.error(f"--jobs {options.jobs}: at least one, and one with --quick")
    plan = load_plan(options.plan, quick=options.quick)
    places = Places.of(plan) if options.root is None else Places.under(options.root, Path(plan["page"]).stem)
    if options.quick:
        from experiments.proof.quick import write_opening

        plan["backbone"] = write_opening(options.root / "backbone")
    chosen = {**plan, "seeds": options.seeds, "more_seeds": {}} if options.seeds else plan
    bench = Bench(build_stages(chosen), places, in_process=options.quick)
    if options.list:
        _list(bench)
        return
    done = options.report or run_stages(
        bench, options.only, jobs=options.jobs, minutes=options.minutes, again=options.again
    )
    write_report(Bench(build_stages(plan), places), plan)
    print(f"page: {places.page}" + ("" if done else " (with what is there so far)"))


def _list(bench: Bench) -> None:
    results, state = read_results(bench.places), states(bench)
    for number, name in enumerate(bench.stages, 1):
        seconds = results[name]["seconds"] if state[name] == "done" else None
        print(f"{number:>4} {name:<32}{state[name]:<8}{'' if seconds is None else clock(seconds):>8}")
    total = sum(results[name]["seconds"] for name in bench.stages if state[name] == "done")
    done = sum(value == "done" for value in state.values())
    print(f"{done} of {len(state)} stages are done, in {clock(total)}")


if __name__ == "__main__":
    main()
