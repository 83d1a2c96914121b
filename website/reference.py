"""Pages of the reference: one per package, from its `__all__`; sources are read, nothing is imported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import griffe

from website.repository import ROOT

PACKAGES = (
    "futurel1.predictor",
    "futurel1.models",
    "futurel1.models.decoding",
    "futurel1.models.policies",
    "futurel1.models.transcript",
    "futurel1.models.backbones",
    "futurel1.losses",
    "futurel1.rewards",
    "futurel1.rollout",
    "futurel1.modules",
    "futurel1.data",
    "futurel1.data.chat",
    "futurel1.data.video",
    "futurel1.datamodules",
    "futurel1.worlds",
    "futurel1.metrics",
    "futurel1.metrics.functional",
    "futurel1.curation",
    "futurel1.engines",
    "futurel1.endpoints",
    "futurel1.checking",
    "futurel1.planning",
    "futurel1.report",
    "futurel1.diagnosis",
    "futurel1.runs",
    "futurel1.export",
    "futurel1.ask",
    "futurel1.scores",
    "futurel1.curves",
    "futurel1.shipped_configs",
    "futurel1.cli",
    "futurel1.integrations.lmms_eval",
    "futurel1.errors",
    "futurel1",
)
"""What is public, in the order of the pages. A name of several packages is documented on the first one's page."""

ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?([^`]+)`")
"""A reference as Sphinx writes it; pages show its text as code."""


@dataclass(frozen=True)
class Name:
    """A public name of a package.

    Args:
        path: package and name.
        home: path under which the object is documented.
        kind: ``class``, ``function`` or ``attribute``.
        summary: first sentence of its docstring.
    """

    path: str
    home: str
    kind: str
    summary: str


def public_names() -> dict[str, list[Name]]:
    """The names of each of `PACKAGES`, classes first, then functions, then the rest."""
    root = griffe.load("futurel1", search_paths=[str(ROOT / "src")])
    homes: dict[str, str] = {}
    found: dict[str, list[Name]] = {}
    for package in PACKAGES:
        module = root if package == "futurel1" else root[package.removeprefix("futurel1.")]
        names = []
        for name in exported(module):
            member = module.members[name]
            target = member.final_target if isinstance(member, griffe.Alias) else member
            home = homes.setdefault(target.path, f"{package}.{name}")
            summary = target.docstring.value.strip().partition("\n\n")[0] if target.docstring else _value(target)
            names.append(Name(f"{package}.{name}", home, target.kind.value, plain_summary(summary)))
        kinds = ["class", "function"]
        found[package] = sorted(names, key=lambda each: kinds.index(each.kind) if each.kind in kinds else len(kinds))
    return found


def _value(target: griffe.Object | griffe.Alias) -> str:
    """What a name without docstring stands for, such as a choice of settings."""
    value = str(target.value) if isinstance(target, griffe.Attribute) and target.value is not None else ""
    return f"`{value}`" if value else ""


def exported(module: Any) -> list[str]:
    """Names of `__all__`; without it the classes, functions and documented values that the module defines."""
    if module.exports is not None:
        return [name if isinstance(name, str) else name.name for name in module.exports]
    return [
        name
        for name, member in module.members.items()
        if not name.startswith("_") and not member.is_alias and not member.is_module and member.docstring is not None
    ]


def plain_summary(text: str) -> str:
    """The summary of a docstring on one line, fit for a cell of a table."""
    return ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`").replace("|", "\\|")


def page_name(package: str) -> str:
    """Name of a package's page."""
    return "reference/" + (package.removeprefix("futurel1.") if package != "futurel1" else "futurel1") + ".md"


def reference_pages() -> dict[str, str]:
    """Markdown of the pages of the reference, by name."""
    found = public_names()
    rows = [
        f"| [`{package}`]({page_name(package).removeprefix('reference/')}) | {_about(package)} |" for package in found
    ]
    head = "# Reference\n\nEverything public, by package. A name that several packages have is documented once.\n\n"
    pages = {"reference/index.md": head + "| package | what is in it |\n|---|---|\n" + "\n".join(rows) + "\n"}
    for package, names in found.items():
        pages[page_name(package)] = _page(package, names)
    return pages


def _page(package: str, names: list[Name]) -> str:
    rows = [f"| [`{name.path.rpartition('.')[2]}`][{name.home}] | {name.summary} |" for name in names]
    parts = [f"# `{package}`", _about(package), "| name | what it is |\n|---|---|\n" + "\n".join(rows)]
    parts += [f"::: {name.path}" for name in names if name.home == name.path]
    return "\n\n".join(parts) + "\n"


def _about(package: str) -> str:
    """First paragraph of a package's docstring."""
    folder = ROOT / "src" / package.replace(".", "/")
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = griffe.visit(package, file, file.read_text(encoding="utf-8")).docstring
    return plain_summary(docstring.value.strip().partition("\n\n")[0]) if docstring else ""


class Roles(griffe.Extension):
    """Shows Sphinx's references in docstrings as code, and examples as such."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite the docstring of an object that griffe has read."""
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^( *)Example:(?=\n\s*>>>)", r"\1Examples:", text, flags=re.MULTILINE)
