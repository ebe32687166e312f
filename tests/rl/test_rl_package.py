"""What importing evo_subnets.rl needs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys
sys.modules["stable_baselines3"] = None
import evo_subnets
try:
    import evo_subnets.rl
except ModuleNotFoundError as error:
    print(error)
"""


def run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_without_stable_baselines3_one_line_says_what_to_install():
    result = run(WITHOUT)
    assert result.stderr == ""
    assert result.stdout == (
        "evo_subnets.rl needs stable_baselines3: pip install 'evo-subnets[rl]'\n"
    )


def test_importing_it_is_silent_and_brings_no_procgen():
    result = run("import sys, evo_subnets.rl; print(*sys.modules, sep='\\n')")
    assert result.stderr == "", "gym's notice"
    loaded = set(result.stdout.split())
    assert "stable_baselines3" in loaded
    assert not loaded & {"procgen", "agents", "envs", "tyro", "ray"}
