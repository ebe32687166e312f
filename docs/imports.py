"""What imports what in this checkout, for the picture of its rooms and for the tests."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("evo_subnets", "agents", "envs", "configs", "scripts", "benchmarks")
LIBRARY = ROOT / "evo_subnets"
CONTENTS = LIBRARY / "__init__.py"

READING_ORDER = (
    "streams", "draws", "copies", "weights", "subnetworks", "mutation", "recipes", "lineage",
    "options", "search", "inputs", "outputs", "actions", "kinds", "ensemble", "views", "roots",
    "trust_region", "spread", "evolution", "descendants", "walk", "generations",
    "racing", "bindings", "pruning", "rewiring", "annealing", "task", "schedules", "tuning",
    "prediction",
)  # fmt: skip
"""The flat files of the library: each imports only those before it. A new one is placed here."""


def files() -> list[Path]:
    """Every Python file of ours but the tests and this folder."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """From the checkout's root, with slashes."""
    return path.relative_to(ROOT).as_posix()


def module_file(name: str) -> Path | None:
    """The file of a module of ours, by its dotted name; None of any other."""
    if name.split(".")[0] not in FOLDERS:
        return None
    path = ROOT.joinpath(*name.split("."))
    found = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in found if file.exists()), None)


@cache
def imported(path: Path) -> frozenset[Path]:
    """The files of ours that a file imports: anywhere in it, inside functions, for types alone."""
    found: set[Path | None] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {module_file(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path} has a relative import: write the module's whole name")
            module = str(node.module)
            for alias in node.names:
                found.add(module_file(f"{module}.{alias.name}") or module_file(module))
    return frozenset(file for file in found if file is not None and file != path)
