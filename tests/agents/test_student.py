"""A student on its own states."""

import pytest
import torch
from networks import all_same_bits, built

from agents.distillation import Lessons, distil
from agents.impala import impala_actor
from agents.play.course import Course
from agents.play.observations import collect_observations
from envs.games import TRAIN_LEVELS
from evo_subnets import Ensemble, Run, quads
from evo_subnets.rl import EnsemblePolicy

FEW = Lessons(rounds=4, observations=64, batch_size=8, learning_rate=1e-2)


def course(number):
    return Course("coinrun", TRAIN_LEVELS, seed=number, frame_stack=1, num_envs=64)


@pytest.fixture
def parent():
    """With a head that prefers some actions."""
    actor = built(lambda: impala_actor((2, 3, 4), frame_stack=1))
    with torch.no_grad():
        actor.head.bias += torch.linspace(-2, 2, 15)
    return actor.eval()


def test_a_student_learns_its_teachers_actions_and_a_run_keeps_it(parent, tmp_path):
    teacher = Ensemble.from_mutations(parent, quads(4, 0.3, density=0.5, seed=0))
    before = {name: each.clone() for name, each in parent.state_dict().items()}
    with Run(tmp_path / "run") as run:
        run.ask("a test", {})
        student = distil(teacher, parent, course=course, lessons=FEW, run=run)
    assert all_same_bits(parent.state_dict(), before)
    observations = collect_observations(EnsemblePolicy(student), course(9), count=64)

    def divergence(model):
        found = [EnsemblePolicy(each, parent.observation_space).log_probabilities(observations)
                 for each in (teacher, model)]  # fmt: skip
        return (found[0].exp() * (found[0] - found[1])).sum(-1).mean().item()

    assert divergence(student) < 0.3 * divergence(parent)
    again = distil(teacher, parent, course=course, lessons=FEW, run=Run.none())
    assert all_same_bits(again.state_dict(), student.state_dict())
    with Run(tmp_path / "run") as run:
        run.ask("a test", {})
        kept = distil(teacher, parent, course=None, lessons=FEW, run=run)
    assert all_same_bits(kept.state_dict(), student.state_dict())
