"""Command line of the miniature: `python -m experiments.miniature`, from the root of the repository."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.miniature.report import write_report
from experiments.miniature.results import Bench, Places, read_results
from experiments.miniature.run import clock, run_stages, states
from experiments.miniature.stages import FOLDER, build_stages, load_plan


def main(args: Sequence[str] | None = None) -> None:
    """Run stages or show their state, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m experiments.miniature", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="GLOB", help="stages to run, such as 'test-*', with what they need")
    add("--seeds", nargs="+", type=int, help="seeds to run, of the plan's or others; the page shows the plan's")
    add("--jobs", type=int, default=1, help="stages at once, each with its share of the cores (default: 1)")
    add("--minutes", type=float, help="start no new stage after so many minutes")
    add("--list", action="store_true", help="show all stages, and how far they are")
    add("--report", action="store_true", help="only write the page and its figures from the results that are there")
    add("--again", action="store_true", help="also run stages whose result came with the repository")
    add("--quick", action="store_true", help="check the plumbing in minutes; the numbers mean nothing")
    add("--plan", type=Path, default=FOLDER / "plan.yaml", help="another plan, such as one for choosing settings")
    add("--root", type=Path, help="write runs, results and page into this folder")
    options = parser.parse_args(args)
    if not FOLDER.is_dir():
        parser.error(f"run it from the root of the repository: there is no {FOLDER} here")
    if options.quick and options.root is None:
        parser.error("--quick needs --root, a folder for what it writes")
    if options.jobs < 1 or (options.quick and options.jobs > 1):
        parser.error(f"--jobs {options.jobs}: at least one, and one with --quick")
    plan = load_plan(options.plan, quick=options.quick)
    places = Places() if options.root is None else Places.under(options.root)
    if options.quick:
        from experiments.miniature.quick import write_opening

        plan["backbone"] = write_opening(options.root / "backbone")
    chosen = {**plan, "seeds": options.seeds or plan["seeds"]}
    bench = Bench(build_stages(chosen), places, in_process=options.quick)
    if options.list:
        _list(bench)
        return
    done = options.report or run_stages(
        bench, options.only, jobs=options.jobs, minutes=options.minutes, again=options.again
    )
    write_report(Bench(build_stages(plan), places), plan)
    print(f"page: {places.document}" + ("" if done else " (with what is there so far)"))


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
