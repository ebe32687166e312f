"""What play leaves behind: clips, and a line an episode."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from agents.play.course import Course, Episodes
from envs.procgen import ProcgenSimulator
from evo_subnets import files
from evo_subnets.rl import EnsemblePolicy


def record_clip(
    policy: EnsemblePolicy,
    course: Course,
    *,
    path: Path,
    max_steps: int = 500,
    deterministic: bool = False,
) -> float:
    """Writes a GIF of the policy's play, at most one episode; the return so far comes back.

    It comes from an environment of its own: drawing slows the simulator down a hundred times.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    simulator = ProcgenSimulator(
        course.game,
        1,
        levels=course.levels,
        mode=course.mode,
        frame_stack=course.frame_stack,
        seed=course.seed,
        high_resolution=True,
    )
    generator = np.random.default_rng(course.seed)
    total = 0.0
    pictures = []
    for _ in range(max_steps):
        pictures.append(Image.fromarray(simulator.frames()[0]).resize((256, 256)))
        uniforms = None if deterministic else generator.random(1)
        step = simulator.step(policy.act(simulator.observation, uniforms))
        total += float(step.reward[0])
        if step.terminated[0] or step.truncated[0]:
            break
    simulator.close()
    data = io.BytesIO()
    pictures[0].save(
        data, "GIF", save_all=True, append_images=pictures[1:], duration=1000 // 15, loop=0
    )
    files.write_atomically(path, data.getvalue())
    return total


def write_episodes(path: Path, played: Mapping[str, Episodes]) -> None:
    """One line an episode and policy, with the level it was played on."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["policy", "episode", "level_seed", "return", "length"])
    for name, episodes in played.items():
        for number, (level, value, length) in enumerate(
            zip(episodes.level_seeds, episodes.returns, episodes.lengths, strict=True)
        ):
            writer.writerow([name, number, int(level), float(value), int(length)])
    files.write_atomically(path, text.getvalue().encode())


def read_returns(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """(episodes,) returns by policy, of a file that `write_episodes` wrote."""
    found: dict[str, list[float]] = {}
    with path.open(newline="") as lines:
        for line in csv.DictReader(lines):
            found.setdefault(line["policy"], []).append(float(line["return"]))
    return {policy: np.array(returns) for policy, returns in found.items()}
