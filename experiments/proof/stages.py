"""The stages of a plan, with digests of everything that determines their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

Kind = Literal["world", "split", "probe", "curate", "records", "sft", "rl", "test", "controls", "retrieval", "diagnose"]
Plan = Mapping[str, Any]

FOLDER = Path("experiments/proof")
CONFIGS = FOLDER / "configs"
BACKBONE = "backbone"
"""Name of the untrained run: the backbone as it is."""
SHIPPED = "tiny"
"""The backbone that ships with the library."""


@dataclass(frozen=True)
class Stage:
    """A unit of work with one result.

    Attributes:
        name: such as ``sft-latent-s0``; also the name of its folder and its result file.
        kind: the kind of work.
        seed: seed of its run; None without a seed.
        needs: names of the stages whose output it reads.
        options: everything that determines its result, besides `needs` and its configuration file.
    """

    name: str
    kind: Kind
    seed: int | None
    needs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def config_file(self) -> Path | None:
        """Configuration file of the `futurel1` command; None if there is none."""
        name = {"sft": "sft", "rl": "rl", "test": "test", "controls": "test"}.get(self.kind)
        return None if name is None else CONFIGS / f"{name}.yaml"


def plan_file(name: str) -> Path:
    """File of the plan with this name, such as ``miniature``; any other name is that of a file."""
    file = FOLDER.parent / name / "plan.yaml"
    return file if file.is_file() else Path(name)


def load_plan(file: Path, *, quick: bool = False) -> dict[str, Any]:
    """Read a plan; with `quick`, its section of that name overrides the rest."""
    plan: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    changes = plan.pop("quick", {})
    return merged(plan, changes) if quick else plan


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes into a mapping recursively."""
    both = dict(base)
    for name, value in changes.items():
        inner = both.get(name)
        both[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


class _Builder:
    """Adds stages on demand, after the stages that they need."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stages: dict[str, Stage] = {}
        self._open: list[str] = []

    def add(self, stage: Stage) -> str:
        self.stages.setdefault(stage.name, stage)
        return stage.name

    def world(self) -> str:
        return self.add(Stage("world", "world", None, (), dict(self.plan["world"])))

    def split(self) -> str:
        return self.add(Stage("split", "split", None, (self.world(),), dict(self.plan["split"])))

    def curate(self, seed: int | None = None) -> str:
        """The stage that chooses records; with a seed, by responses that were sampled for it."""
        probe = self.plan["probe"]
        model = probe["model"]
        needs = [self.split()] if model == BACKBONE else [self.split(), self.run(model, 0)]
        settings = probe["set"] if seed is None else {**probe["set"], "sampling.seed": seed}
        options = {"model": model, "backbone": self.plan["backbone"], "set": settings}
        asked = self.add(Stage(_named("probe", seed), "probe", seed, tuple(needs), options))
        return self.add(Stage(_named("curate", seed), "curate", seed, (asked, "split"), dict(self.plan["curate"])))

    def records(self, name: str, seed: int) -> str:
        """The stage that makes a set of records."""
        if name == "curated":
            return self.curate()
        made: Mapping[str, Any] = self.plan["records"][name]
        if made.get("probed_again"):
            return self.curate(seed + 1)  # the seed of the other probe is 0
        if "text" in made:
            of = self.records(made["text"], seed)
            own = self.stages[of].seed
            options = {"text": True, "backbone": self.plan["backbone"]}
            return self.add(Stage(_named(f"records-{name}", own), "records", own, (of, self.split()), options))
        needs = [self.split()]
        draw: int | str = made["draw"]
        if isinstance(draw, str):
            draw = self.records(draw, seed)
            needs.append(draw)
        options = {"draw": draw, **({"clean": True} if made.get("clean") else {})}
        return self.add(Stage(_named(f"records-{name}", seed), "records", seed, tuple(needs), options))

    def run(self, name: str, seed: int) -> str:
        """The stage that trains a run such as ``sft-latent``."""
        stage = _named(name, seed)
        if stage in self._open:
            raise ValueError(f"the plan needs {stage} to make {stage}: {' <- '.join([*self._open, stage])}")
        self._open.append(stage)
        kind, _, short = name.partition("-")
        if kind not in ("sft", "rl") or short not in self.plan[kind]["runs"]:
            raise ValueError(f"the plan has no run {name!r}")
        run: Mapping[str, Any] = self.plan[kind]["runs"][short]
        options = {"backbone": self.plan["backbone"], "set": {**self.plan[kind]["set"], **run.get("set", {})}}
        if kind == "sft":
            source = self.records(run["records"], seed)
            options["same_tokens"] = bool(run.get("same_tokens"))
            made = Stage(stage, "sft", seed, (source, self.split()), options)
        else:
            made = Stage(stage, "rl", seed, (self.run(f"sft-{run['from']}", seed), self.world(), self.split()), options)
        self._open.pop()
        return self.add(made)

    def test(self, name: str, seed: int) -> str:
        """The stage that tests a run; ``RUN+VARIANT`` with the settings of that variant."""
        run, _, variant = name.partition("+")
        own = None if run == BACKBONE else seed
        model = () if own is None else (self.run(run, seed),)
        variants = self.plan["test"].get("variants", {})
        if variant and variant not in variants:
            raise ValueError(f"the plan has no test variant {variant!r}, as {name} asks for")
        records = self.world() if self.plan["test"]["records"] == "test" else self.split()
        options = {
            "backbone": self.plan["backbone"], "set": {**self.plan["test"]["set"], **variants.get(variant, {})},
            "records": self.plan["test"]["records"], "save_latents": name in self.plan["controls"],
        }  # fmt: skip
        return self.add(Stage(_named(f"test-{name}", own), "test", own, (*model, records), options))

    def studies(self, name: str, seed: int) -> None:
        """Add the stages that examine the latents of a run."""
        test = self.stages[self.test(name, seed)]
        options = {**test.options, "interventions": list(self.plan["interventions"])}
        needs = (test.name, *test.needs)
        self.add(Stage(_named(f"controls-{name}", seed), "controls", seed, needs, options))
        options = {"backbone": self.plan["backbone"], "records": self.plan["test"]["records"], **self.plan["retrieval"]}
        needs = tuple(dict.fromkeys((*needs, self.world())))
        self.add(Stage(_named(f"retrieval-{name}", seed), "retrieval", seed, needs, options))

    def diagnosis(self, name: str, seed: int) -> None:
        """Add the stage that diagnoses a run, and the questions about two futures that it asks."""
        plan = self.plan["diagnose"]
        counts = {"train": 0, "test": 0, "rl": 0, "counterfactual": plan["count"]}
        asked = self.add(Stage("counterfactual", "world", None, (), {**self.plan["world"], **counts}))
        other = plan["runs"][name].get("text_only")
        needs = (self.run(name, seed), asked, *(() if other is None else (self.run(other, seed),)))
        options = {"set": dict(plan.get("set", {}))}
        self.add(Stage(_named(f"diagnose-{name}", seed), "diagnose", seed, needs, options))


def _named(name: str, seed: int | None) -> str:
    return name if seed is None else f"{name}-s{seed}"


def diagnosed_runs(plan: Plan) -> list[str]:
    """Runs that are diagnosed."""
    return list(plan.get("diagnose", {}).get("runs", ()))


def shown_runs(plan: Plan) -> list[str]:
    """Runs shown in a table, main rows first."""
    ablations = (run for table in plan.get("ablations", {}).values() for run in table)
    return list(dict.fromkeys([*plan["rows"], *ablations, *plan["controls"], *diagnosed_runs(plan)]))


def seeds_of(run: str, plan: Plan) -> list[int]:
    """Seeds that a run is trained and tested with: the plan's, and those that it adds for this run."""
    more = plan.get("more_seeds", {})
    return [*plan["seeds"], *(more["seeds"] if run in more.get("runs", ()) else ())]


def build_stages(plan: Plan) -> dict[str, Stage]:
    """All stages that the tables need, seed by seed, each after the stages that it needs.

    Raises:
        ValueError: a run that is not in the plan, or that depends on itself.
    """
    builder = _Builder(plan)
    for seed in plan["seeds"]:
        for name in shown_runs(plan):
            builder.test(name, seed)
            if name in plan["controls"]:
                builder.studies(name, seed)
            if name in diagnosed_runs(plan):
                builder.diagnosis(name, seed)
    for name in shown_runs(plan):
        for seed in seeds_of(name, plan):  # those that the plan adds for this run
            builder.test(name, seed)
    return builder.stages


def stages_testing(run: str, plan: Plan) -> list[str]:
    """Names of the stages that test a run, one per seed; for the backbone only one."""
    return [f"test-{run}"] if run == BACKBONE else [_named(f"test-{run}", seed) for seed in seeds_of(run, plan)]


def with_needs(names: Iterator[str] | list[str], stages: Mapping[str, Stage]) -> list[str]:
    """The given stages and all stages that they need, in the order of `stages`."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += stages[name].needs
    return [name for name in stages if name in found]


# ---------------------------------------------------------------------------------------------------------- digests


def config_of(stage: Stage) -> dict[str, Any]:
    """Everything that determines a stage's result, except its inputs: options, configuration, text files, weights."""
    file = stage.config_file
    settings = None if file is None else _parsed(file.read_text(encoding="utf-8"))
    config = {"kind": stage.kind, "seed": stage.seed, "options": stage.options, "settings": settings}
    backbone = stage.options.get("backbone")
    return {
        **config,
        "texts": {name: _sha256(Path(name)) for name in sorted(set(_text_files(config)))},
        "weights": None if backbone is None else weights_digest(backbone),
    }


def digests(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Digest of each stage, over its configuration and the digests of its inputs.

    Args:
        stages: all stages, each after those that it needs.
    """
    found: dict[str, str] = {}
    for name, stage in stages.items():
        content = {**config_of(stage), "inputs": [found[need] for need in stage.needs]}
        found[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return found


@cache
def _parsed(text: str) -> Any:
    """A parsed configuration; cached, so it must not be modified."""
    return yaml.safe_load(text)


def _text_files(value: Any) -> Iterator[str]:
    """Yield values that name a text file, such as a system prompt."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _text_files(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _text_files(inner)
    elif isinstance(value, str) and value.endswith(".txt") and Path(value).is_file():
        yield value


@cache
def weights_digest(backbone: str) -> str:
    """Digest of a backbone's weights, in a folder or shipped with the library under this name.

    Raises:
        ValueError: there are no such weights.
    """
    import futurel1

    folder = Path(futurel1.__file__).parent if backbone == SHIPPED else Path(backbone)
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise ValueError(f"there is no backbone in {backbone}: a folder with weights, or {SHIPPED!r}")
    return hashlib.sha256("".join(_sha256(file) for file in files).encode()).hexdigest()[:16]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
