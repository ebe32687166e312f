"""Which way the arrows point: what each folder and each flat file may import, at every depth."""

import ast
import re

import pytest

from docs import draw_architecture
from docs.imports import (
    CONTENTS,
    LIBRARY,
    READING_ORDER,
    ROOT,
    files,
    imported,
    module_file,
    name_of,
)

FLAT = [f"evo_subnets/{name}.py" for name in READING_ORDER]
DOOR = "evo_subnets/engines/__init__.py"
"""The one file of the engines that the rest knows: all others can be deleted."""
SERVING = [DOOR, "evo_subnets/files", "evo_subnets/runs", "evo_subnets/workers"]
MADE_OF_IT = ["evo_subnets/" + name for name in ("structure", "models", "data", "metrics")]
ALL_BUT_METHODS = ["evo_subnets/__init__.py", *FLAT, *SERVING, *MADE_OF_IT, "evo_subnets/rl"]
PROTOCOLS = [
    "evo_subnets/runs/__init__.py", "evo_subnets/runs/run.py",
    "evo_subnets/workers/__init__.py", "evo_subnets/workers/here.py",
]  # fmt: skip
"""What a flat file may know of runs and workers: what does the work is handed in."""

MAY_IMPORT = {
    **{
        name: [*FLAT[:index], DOOR, "evo_subnets/files", *PROTOCOLS]
        for index, name in enumerate(FLAT)
        if index
    },
    "evo_subnets/streams.py": [],
    "evo_subnets/__init__.py": [*FLAT, "evo_subnets/runs", "evo_subnets/workers"],
    # what serves the idea
    "evo_subnets/files": ["evo_subnets/files"],
    "evo_subnets/engines": ["evo_subnets/engines", *FLAT[:3]],
    "evo_subnets/runs": ["evo_subnets/runs", "evo_subnets/files"],
    "evo_subnets/workers": ["evo_subnets/workers"],
    "evo_subnets/workers/evotorch.py": ["evo_subnets/workers", *FLAT],
    # what is made of it
    "evo_subnets/models": ["evo_subnets/models", "evo_subnets/streams.py"],
    "evo_subnets/data": ["evo_subnets/data", *SERVING[:3], *FLAT],
    "evo_subnets/structure": ["evo_subnets/structure", "evo_subnets/files", *FLAT],
    "evo_subnets/metrics": ["evo_subnets/metrics", "evo_subnets/data", *SERVING[1:3], *FLAT],
    "evo_subnets/rl": ["evo_subnets/rl", *SERVING, *FLAT],
    "evo_subnets/methods": ["evo_subnets/methods", *SERVING, *FLAT, *MADE_OF_IT],
    # what uses the library
    "envs": ["envs", *ALL_BUT_METHODS],
    "agents": ["agents", "envs", *ALL_BUT_METHODS],
    "agents/fast": ["agents/fast", "agents/impala.py", *SERVING, *FLAT],
    "agents/play": [
        "agents/play", "agents/kept.py", "agents/impala.py", "envs", *ALL_BUT_METHODS,
    ],
    "configs": ["configs", "agents", "envs", "evo_subnets"],
    "scripts": ["configs", "agents", "envs", "evo_subnets"],
    "benchmarks": ["benchmarks", "configs", "agents", "envs", "evo_subnets"],
}  # fmt: skip
"""A file or folder to what it may import: of the names that a file lies in, the longest counts."""

OPTIONAL = {
    "ray": ["evo_subnets/workers", "benchmarks"],
    "evotorch": ["evo_subnets/workers", "benchmarks"],
    "stable_baselines3": ["evo_subnets/rl", "agents", "envs", "scripts", "benchmarks"],
    "gymnasium": ["evo_subnets/rl", "agents", "envs", "scripts", "benchmarks"],
    "procgen": ["envs"],
    "tyro": ["configs", "scripts", "benchmarks"],
    "torchvision": [],
    "matplotlib": [],
    "tensorboard": ["agents"],
    "torch.utils.tensorboard": [],
    "scipy": [],
    "sklearn": [],
    "imageio": [],
    "tqdm": ["agents"],
}
"""A package that not everyone has, to the folders whose files need it to be imported at all.

Everywhere else it is imported in the function that uses it.
"""


def within(name, places):
    """Whether a file lies in one of the folders, or is one of the files."""
    return any(f"{name}/".startswith(f"{place}/") for place in places)


def rule_of(path):
    """The longest entry of the table that a file lies in."""
    fitting = [place for place in MAY_IMPORT if within(name_of(path), [place])]
    assert fitting, f"{name_of(path)} lies in no folder of the table: say what it may import"
    return max(fitting, key=len)


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_file_imports_only_what_its_folder_may(path):
    allowed = MAY_IMPORT[rule_of(path)]
    wrong = sorted(name_of(file) for file in imported(path) if not within(name_of(file), allowed))
    assert not wrong, f"{name_of(path)} may import {allowed}, and imports {wrong}"


def test_every_folder_and_flat_file_has_its_own_line_in_the_table():
    folders = {name_of(path.parent) for path in files()} - {"evo_subnets"}
    assert folders | {name_of(path) for path in LIBRARY.glob("*.py")} <= set(MAY_IMPORT)


def test_the_reading_order_names_the_flat_files_that_there_are():
    there = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__"}
    assert sorted(READING_ORDER) == sorted(there), "docs/imports.py has the order: place it there"


def test_nobody_imports_the_methods_but_scripts_configs_and_benchmarks():
    free = ["evo_subnets/methods", "scripts", "configs", "benchmarks"]
    for path in files():
        if not within(name_of(path), free):
            wrong = [file for file in imported(path) if within(name_of(file), free[:1])]
            assert not wrong, name_of(path)


def test_the_engines_have_one_door():
    inside = ["evo_subnets/engines", "benchmarks"]
    for path in files():
        if not within(name_of(path), inside):
            names = {name_of(file) for file in imported(path)} - {DOOR}
            assert not [name for name in names if within(name, inside[:1])], name_of(path)


def test_inside_the_library_nobody_imports_its_table_of_contents():
    """That would run every flat file for one name, and make circles of them all."""
    inside = [path for path in files() if within(name_of(path), ["evo_subnets"])]
    assert not [name_of(path) for path in inside if CONTENTS in imported(path)]


def runs(path):
    """The files that run when this one is imported: those it names, and the `__init__` files on
    the way to them, but for those of the folders that it lies in itself."""
    found = set()
    for target in imported(path):
        on_the_way = {parent / "__init__.py" for parent in target.parents if ROOT in parent.parents}
        own = {parent / "__init__.py" for parent in path.parents}
        found |= {target} | {init for init in on_the_way - own if init.exists()}
    return found - {path}


def circles(arrows):
    """What is left of {file: files} when all have gone that point to none of the others."""
    while free := {file for file, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {file: targets for file, targets in arrows.items() if file not in free}
    return arrows


def test_there_are_no_circles_at_any_depth():
    left = circles({path: runs(path) for path in files()})
    tied = {
        name_of(path): sorted(name_of(file) for file in targets if file in left)
        for path, targets in left.items()
    }
    assert not tied


def test_circles_are_found():
    a, b, c, d = (ROOT / name for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {b}, d: set()}) == {a: {b}, b: {c}, c: {b}}
    assert not circles({a: {b, c}, b: {c}, c: {d}, d: set()})


def test_imports_are_read_at_every_depth(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "import evo_subnets.streams\n"
        "from evo_subnets import mutation\n"
        "from evo_subnets.files import packing\n"
        "from evo_subnets.engines import *\n"
        "if TYPE_CHECKING:\n    from envs.procgen import Levels\n"
        "def late():\n    import agents.ppo as p, torch\n"
    )
    names = {name_of(path) for path in imported(file)}
    assert names == {
        "evo_subnets/streams.py", "evo_subnets/mutation.py", "evo_subnets/files/packing.py",
        "evo_subnets/engines/__init__.py", "envs/procgen.py", "agents/ppo.py",
    }  # fmt: skip
    assert module_file("torch.nn") is None
    file = tmp_path / "two.py"
    file.write_text("from . import one\n")
    with pytest.raises(ValueError, match="relative import"):
        imported.__wrapped__(ROOT / file)


def at_import(tree):
    """The import statements that run with the file: not those in functions, nor those for types."""
    todo = list(ast.iter_child_nodes(tree))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_optional_packages_are_imported_where_they_are_used(path):
    wrong = {
        package
        for package, places in OPTIONAL.items()
        for name in at_import(ast.parse(path.read_text()))
        if within(name.replace(".", "/"), [package.replace(".", "/")])
        and not within(name_of(path), places)
    }
    assert not wrong, f"import {sorted(wrong)} in the function that uses it"


BY_POSITION = {
    "forward": "torch calls a module's and a Function's",
    "backward": "torch calls a Function's",
    "EnsemblePolicy.predict": "stable-baselines3's signature",
    "ProcgenVecEnv.set_attr": "stable-baselines3's signature",
    "Crew.work_on": "EvoTorch's actors call it",
    "scalar": "TensorBoard's three: tag, value, step",
    "histogram": "TensorBoard's three: tag, values, step",
    "text": "TensorBoard's three: tag, markdown, step",
    "record": "a record's three: its name, a key, a value",
    "evo_subnets/data/noise_and_blur.py": "a corruption: images, their generators, its strength",
    "evo_subnets/data/weather.py": "a corruption: images, their generators, its strength",
    "evo_subnets/data/digital.py": "a corruption: images, their generators, its strength",
}
"""Functions, methods of any class, and whole files whose calls go by position, and why."""


def positional(function, method):
    """The arguments that can be given by position, without `self`."""
    names = [argument.arg for argument in function.args.posonlyargs + function.args.args]
    static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    return names[1:] if method and not static else names


def public_functions(body, prefix="", method=False):
    """(dotted name, function) of what has a public name: constructors and calls count as well."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.", True)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            node.name in ("__init__", "__call__") or not node.name.startswith("_")
        ):
            yield f"{prefix}{node.name}", positional(node, method)


SIGNATURES = [
    pytest.param(name, arguments, id=f"{name_of(path)}:{name}")
    for path in files()
    if within(name_of(path), ["evo_subnets", "agents", "envs", "configs"])
    for name, arguments in public_functions(ast.parse(path.read_text()).body)
    if not {name, name.split(".")[-1] if "." in name else "", name_of(path)} & set(BY_POSITION)
]


@pytest.mark.parametrize(("name", "arguments"), SIGNATURES)
def test_a_function_takes_at_most_two_arguments_by_position(name, arguments):
    assert len(arguments) <= 2, f"{name}({', '.join(arguments)}): put a * behind the second"


def test_signatures_are_read():
    source = (
        "def plain(a, b, c): ...\n"
        "def keywords(a, b, *, c): ...\n"
        "def _private(a, b, c): ...\n"
        "class One:\n"
        "    def __init__(self, a, b, c): ...\n"
        "    def __exit__(self, kind, error, traceback): ...\n"
        "    def method(self, a, b): ...\n"
        "    @staticmethod\n"
        "    def static(a, b, c): ...\n"
        "class _Two:\n"
        "    def method(self, a, b, c): ...\n"
    )
    found = {name: len(names) for name, names in public_functions(ast.parse(source).body)}
    assert found == {
        "plain": 3, "keywords": 2, "One.__init__": 3, "One.method": 2, "One.static": 3,
    }  # fmt: skip


def apart(picture):
    """The picture without its numbers of lines, and those: what changes with every commit."""
    sizes = re.findall(r"([\d.]+)(k?) lines", picture)
    return re.sub(r"[\d.]+k? lines", "lines", picture), [
        float(number) * (1000 if thousands else 1) for number, thousands in sizes
    ]


def test_the_picture_is_what_the_imports_say():
    """The numbers of lines may lag behind by a fifth, or by a hundred."""
    drawn, sizes = apart((ROOT / "docs/architecture.svg").read_text())
    now, sizes_now = apart(draw_architecture.svg())
    assert drawn == now, "run `python docs/draw_architecture.py`"
    close = pytest.approx(sizes_now, rel=0.2, abs=100)
    assert sizes == close, "run `python docs/draw_architecture.py`"


def test_every_arrow_of_the_picture_points_down():
    assert not [arrow for arrow in draw_architecture.arrows() if draw_architecture.up(arrow)]


def test_no_two_test_files_share_a_name():
    """pytest imports them by their bare names: a second one is an error of collection."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    shared = {name for name in names if names.count(name) > 1}
    assert shared <= {"conftest.py", "__init__.py"}
