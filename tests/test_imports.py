"""Does every module import only what its room may? The offender is named with file and line.

The rooms and their one direction are those of `docs`: settings and snapshots at the bottom, the page at the top.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import from its own floor and the floors below. A package speaks for the modules in it.
FLOORS = [
    {"moeviz.strategies", "moeviz.config", "moeviz.snapshot", "moeviz.paired"},
    {"moeviz.routing", "moeviz.capacity", "moeviz.balance", "moeviz.metrics", "moeviz.experts", "moeviz.adamw"},
    {"moeviz.together", "moeviz.presets"},
    {"moeviz.params", "moeviz.forks"},
    {"moeviz.model", "moeviz.probe", "moeviz.truth", "moeviz.tasks", "moeviz.export", "moeviz.sweep", "moeviz.receipt"},
    {"moeviz.training"},
    {"moeviz.engine", "moeviz.machine"},
    {"moeviz.checkpoint", "moeviz.cells", "moeviz.again", "moeviz.stacking"},
    {"moeviz.toy"},
    {"moeviz.host", "moeviz.figures", "moeviz.live", "moeviz.lessons"},
    {"moeviz.farm"},
    {"moeviz.cli", "moeviz.ui"},
    {"moeviz.__main__", "pages"},
    {"app"},
]
# Rooms on one floor that know nothing of each other.
STRANGERS = [
    ("moeviz.routing", "moeviz.balance"),
    ("moeviz.capacity", "moeviz.balance"),
    ("moeviz.routing", "moeviz.capacity"),
    ("moeviz.metrics", "moeviz.routing"),
    ("moeviz.config", "moeviz.snapshot"),
    ("moeviz.host", "moeviz.live"),
    ("moeviz.live", "moeviz.host"),
    ("moeviz.host", "moeviz.figures"),
    ("moeviz.figures", "moeviz.live"),
    ("moeviz.cli", "moeviz.ui"),
    ("moeviz.ui", "moeviz.cli"),
]
ENGINE_SIDE = (
    "routing",
    "capacity",
    "balance",
    "experts",
    "together",
    "model",
    "probe",
    "truth",
    "tasks",
    "adamw",
    "training",
    "engine",
    "machine",
    "stacking",
    "checkpoint",
    "cells",
    "again",
    "toy",
)
MAY_IMPORT = {
    "torch": tuple(f"moeviz.{name}" for name in (*ENGINE_SIDE, "host.worker", "cli")),
    "plotly": ("moeviz.figures", "moeviz.live"),
    "streamlit": (
        "moeviz.ui",
        "moeviz.live.component",
        "moeviz.live.routes",
        "moeviz.live.visitor",
        "pages",
        "app",
    ),
    "transformers": (),
    "hypothesis": (),
    "pytest": (),
    "tests": (),
}
# What starts fast and stays small: torch reaches these only inside a function, when it is really needed.
WITHOUT_TORCH = (
    *("moeviz.paired", "moeviz.sweep", "moeviz.receipt", "moeviz.farm"),
    *("moeviz.host", "moeviz.live", "moeviz.figures", "moeviz.ui", "moeviz.cli", "pages", "app"),
)


@dataclass(frozen=True)
class Import:
    """One `import` statement: who imports what, where, and whether merely importing the module runs it."""

    module: str
    name: str
    place: str
    at_once: bool


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


@cache
def modules() -> dict[str, Path]:
    """Dotted name of every module of the product, and its file."""
    paths = [*(ROOT / "moeviz").rglob("*.py"), *(ROOT / "pages").rglob("*.py"), *ROOT.glob("app.py")]
    dotted = {}
    for path in sorted(paths):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        dotted[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return dotted


def imports_of(module: str, path: Path) -> list[Import]:
    found = []

    def walk(node: ast.AST, at_once: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            place = f"{path.relative_to(ROOT)}:{getattr(child, 'lineno', 0)}"
            if isinstance(child, ast.Import):
                found.extend(Import(module, alias.name, place, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{place} imports relatively; write the full name"
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    found.append(Import(module, whole if whole in modules() else child.module, place, at_once))
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            walk(child, at_once and not inside)

    walk(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


@cache
def all_imports() -> list[Import]:
    return [found for module, path in modules().items() for found in imports_of(module, path)]


def floor(module: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if any(within(module, room) for room in rooms):
            return number
    pytest.fail(f"{module} has no floor: add it to FLOORS in {Path(__file__).name}")


def test_the_walk_sees_the_imports_that_are_there():
    seen = {(found.module, found.name, found.at_once) for found in all_imports()}
    assert ("moeviz.training", "torch", True) in seen
    assert ("moeviz.training", "moeviz.balance", True) in seen  # from moeviz import balance
    assert ("moeviz.training", "moeviz.config", True) in seen
    assert ("moeviz.tasks", "moeviz.tasks.text", False) in seen  # inside a function


def test_a_module_imports_from_its_own_floor_or_below():
    offenders = [
        f"{found.place}: {found.module} may not import {found.name}, which is above it"
        for found in all_imports()
        if found.name.split(".")[0] in ("moeviz", "pages", "app")
        and found.name != "moeviz"
        and floor(found.name) > floor(found.module)
    ]
    assert not offenders, "\n".join(offenders)


def test_rooms_that_should_not_know_each_other_do_not():
    offenders = [
        f"{found.place}: {found.module} should know nothing of {found.name}"
        for found in all_imports()
        for room, stranger in STRANGERS
        if within(found.module, room) and within(found.name, stranger)
    ]
    assert not offenders, "\n".join(offenders)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_is_imported_only_in_the_rooms_that_need_it(package):
    offenders = [
        f"{found.place}: {found.module} may not import {package}; only {', '.join(MAY_IMPORT[package]) or 'tests'} may"
        for found in all_imports()
        if within(found.name, package) and not any(within(found.module, room) for room in MAY_IMPORT[package])
    ]
    assert not offenders, "\n".join(offenders)


def test_importing_the_page_or_the_host_or_the_command_line_does_not_import_torch():
    """Followed through all imports at module level; the message shows the way that leads to torch."""
    at_once: dict[str, list[Import]] = {}
    for found in all_imports():
        if found.at_once:
            at_once.setdefault(found.module, []).append(found)

    def way_to_torch(module: str, seen: set[str]) -> list[str]:
        # Importing a.b.c runs a and a.b too.
        parts = module.split(".")
        for ancestor in (".".join(parts[: n + 1]) for n in range(len(parts))):
            if ancestor in seen:
                continue
            seen.add(ancestor)
            for found in at_once.get(ancestor, []):
                if within(found.name, "torch"):
                    return [found.place]
                if way := way_to_torch(found.name, seen):
                    return [found.place, *way]
        return []

    assert way_to_torch("moeviz.engine", set())  # the search finds what is there
    offenders = [
        f"importing {module} imports torch: {' -> '.join(way)}"
        for module in modules()
        if any(within(module, room) for room in WITHOUT_TORCH) and (way := way_to_torch(module, set()))
    ]
    assert not offenders, "\n".join(offenders)


def test_what_is_imported_is_required():
    """By name, and not because a package that is required, or one that only tests need, happens to bring it along."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {re.split(r"[<>=~!\[;]", line)[0].strip().lower() for line in lines if line and line[0] != "#"}
    providers = packages_distributions()
    foreign = {found.name.split(".")[0] for found in all_imports()} - set(sys.stdlib_module_names) - {"moeviz"}
    missing = {name for name in foreign if not required & {dist.lower() for dist in providers.get(name, [])}}
    assert not missing, f"requirements.txt lacks {', '.join(sorted(missing))}"


def test_settings_snapshots_and_the_wire_format_load_neither_torch_nor_streamlit_nor_plotly():
    """Asked of a fresh interpreter, because a walk through the source cannot see what other packages import."""
    script = (
        "import sys, moeviz.config, moeviz.snapshot, moeviz.metrics, moeviz.presets, moeviz.live.wire;"
        "import moeviz.sweep, moeviz.paired, moeviz.receipt;"
        "print(sorted({'torch', 'streamlit', 'plotly'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_package_offers_what_a_notebook_needs_and_loads_torch_only_when_asked():
    script = (
        "import sys, moeviz; assert not {'torch', 'numpy', 'streamlit'} & set(sys.modules);"
        "from moeviz import Knobs, presets; assert 'torch' not in sys.modules;"
        "from moeviz import balance, Engine, Recipe, Routing, Snapshot, affinity, max_vio, route, sign_rule;"
        "assert all(getattr(moeviz, name) is not None for name in moeviz.__all__);"
        "assert set(moeviz.__all__) <= set(dir(moeviz)); assert not hasattr(moeviz, 'no_such_thing')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
