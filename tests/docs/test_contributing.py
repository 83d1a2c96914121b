"""What contributors are told is what the project does."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from pages import ROOT, blocks

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def load(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_every_marker_is_explained():
    declared = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)) == declared


def test_make_goals_exist():
    goals = set(re.findall(r"\bmake ([a-z-]+)", GUIDE))
    assert {"install", "lint", "test", "test-numerics"} <= goals
    assert [goal for goal in goals if f"\n{goal}:" not in MAKEFILE] == []


def test_ci_runs_all_tests_but_campaigns_and_those_of_a_gpu():
    listed = set(re.findall(r"^\| `make (test[a-z-]*)` \|", GUIDE, re.MULTILINE))
    assert listed == set(re.findall(r"^make (test[a-z-]*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert listed == set(re.findall(r"^(test[a-z-]*): install$", MAKEFILE, re.MULTILINE))


def test_hooks_run_what_make_lint_runs():
    hooks = [hook for repository in load(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    linted = re.findall(r"\$\(BIN\)/(\w+)(?: (\w+))?", MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0])
    hooked = [re.match(r"\.venv/bin/(\w+)(?: (\w+))?", hook["entry"]).groups("") for hook in hooks]
    assert hooked == linted
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_workflow_runs_what_ci_runs():
    workflow = load(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    declared = re.findall(r"Python :: (3\.\d+)", str(PROJECT["project"]["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == declared
    assert declared[0] == lowest


@pytest.mark.parametrize("name", ["bug_report.yml", "proposal.yml"])
def test_issue_forms_are_complete(name):
    form = load(f".github/ISSUE_TEMPLATE/{name}")
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]


def test_the_changelog_has_this_version_behind_unreleased():
    versions = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d{2}-\d{2}))?$", CHANGELOG, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    source = (ROOT / "src" / "futurel1" / "version.py").read_text()
    assert f'"{versions[1][0]}"' in source
    assert all(date for _, date in versions[1:])
    kinds = re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_commands_of_the_guide_use_the_environment_that_make_installs():
    commands = [line for block in blocks(GUIDE, "bash") for line in block.splitlines()]
    assert commands
    assert all(line.startswith(("make ", ".venv/bin/")) for line in commands)
