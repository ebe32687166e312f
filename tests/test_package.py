"""What importing the library brings, what its public names say, and what the wheel holds."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import evo_subnets
from evo_subnets.engines import philox_cpu, winograd

PACKAGE = Path(evo_subnets.__file__).parent
ROOT = PACKAGE.parent
OTHERS = {"agents", "envs", "configs", "scripts", "benchmarks", "tests"}
OPTIONAL = ["gym", "gym3", "gymnasium", "procgen", "stable_baselines3", "tensorboard"]
OPTIONAL += ["safetensors", "scipy", "evotorch", "ray", "tyro", "torchvision", "imageio"]
# tqdm is not among them: torch.hub imports it with torch, where it is installed


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


def test_the_wheel_holds_the_library_alone():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["evo_subnets"]
    assert project["project"]["version"] == evo_subnets.__version__
    required = {text.split(">")[0] for text in project["project"]["dependencies"]}
    assert required == {"numpy", "safetensors", "torch"}


def test_the_compiled_sources_lie_inside_the_library():
    assert sorted([philox_cpu.SOURCE, winograd.SOURCES[0]]) == sorted(PACKAGE.rglob("*.c"))
