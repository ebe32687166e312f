"""What importing the library brings, and which way its imports point."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import evo_subnets
from evo_subnets.engines import philox_cpu, winograd

PACKAGE = Path(evo_subnets.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
OTHERS = {"agents", "envs", "configs", "scripts", "benchmarks", "tests"}
OPTIONAL = ["gym", "gym3", "gymnasium", "procgen", "stable_baselines3", "tensorboard"]
OPTIONAL += ["safetensors", "scipy", "evotorch", "ray", "tyro", "torchvision", "imageio"]
# tqdm is not among them: torch.hub imports it with torch, where it is installed


def imports(path):
    """Full names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_importing_the_library_needs_torch_and_numpy_alone():
    code = "import sys, evo_subnets, evo_subnets.runs.tracking; print(*sys.modules, sep='\\n')"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert "torch" in loaded
    assert not loaded & set(OPTIONAL)
    assert not {name.split(".")[0] for name in loaded} & OTHERS
    assert not run.stderr


def test_the_public_names_exist_and_are_sorted():
    assert evo_subnets.__all__ == sorted(set(evo_subnets.__all__))
    for name in evo_subnets.__all__:
        assert hasattr(evo_subnets, name)


def public_objects():
    for name in evo_subnets.__all__:
        item = getattr(evo_subnets, name)
        if getattr(item, "__module__", "").startswith("evo_subnets"):
            yield name, item
            for key, member in vars(item).items():
                plain = inspect.isfunction(member) or isinstance(member, property | classmethod)
                if plain and not key.startswith("_"):
                    yield f"{name}.{key}", member


@pytest.mark.parametrize(
    ("name", "item"), [pytest.param(*pair, id=pair[0]) for pair in public_objects()]
)
def test_every_public_name_says_what_it_is(name, item):
    text = inspect.getdoc(item)
    assert text
    assert not text.startswith(f"{name}("), "a dataclass without a docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_library_imports_nothing_of_what_uses_it(path):
    assert not {name.split(".")[0] for name in imports(path)} & OTHERS


def test_streams_imports_nothing_of_ours():
    names = imports(PACKAGE / "streams.py")
    assert not {name for name in names if name.split(".")[0] == "evo_subnets"}


def test_the_imports_of_the_library_have_no_cycle():
    """Of its modules; `evo_subnets` itself is the table of contents, which none of them imports."""
    stems = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    arrows = {}
    for stem in stems:
        names = imports(PACKAGE / f"{stem}.py")
        assert "evo_subnets" not in names
        ours = {name.split(".")[1] for name in names if name.startswith("evo_subnets.")}
        arrows[stem] = ours & stems
    while free := {stem for stem, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {stem: targets for stem, targets in arrows.items() if stem not in free}
    assert not arrows


def test_the_wheel_holds_the_library_alone():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["evo_subnets"]
    assert project["project"]["version"] == evo_subnets.__version__
    required = {text.split(">")[0] for text in project["project"]["dependencies"]}
    assert required == {"numpy", "safetensors", "torch"}


def test_the_compiled_sources_lie_inside_the_library():
    assert sorted([philox_cpu.SOURCE, winograd.SOURCES[0]]) == sorted(PACKAGE.rglob("*.c"))
