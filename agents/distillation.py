"""One network that acts as an ensemble does, at the cost of one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from agents.parents import load_actor, save_actor
from agents.play.course import Course
from agents.play.observations import collect_observations
from evo_subnets.copies import copied
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.streams import check_seed, derive_seed

STUDENT = "student.safetensors"


@dataclass(frozen=True)
class Lessons:
    """How a student is taught."""

    rounds: int = 8
    """Each begins with the student's own play."""
    observations: int = 2048
    """Of a round; those of all rounds before are learned again."""
    batch_size: int = 128
    learning_rate: float = 2e-4
    """Of Adam's."""


def distil(
    teacher: nn.Module,
    start: Actor,
    *,
    course: Callable[[int], Course],
    lessons: Lessons | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    run: Run,
) -> Actor:
    """A student of `start`'s size, and from its weights, that has the teacher's action
    probabilities on the states that it visits itself: the mean KL divergence from the teacher's to
    its own (Hinton et al. 2015; states as in Ross et al. 2011) is made small. A module in
    evaluation mode; `start` stays as it is.

    `course`: of each round, from 0 on. The run keeps the finished student; one that was interrupted
    is taught from the beginning.
    """
    lessons = lessons or Lessons()
    kept = None if run.folder is None else run.folder / STUDENT
    if kept is not None and run.records("student").get("taught") and kept.exists():
        return load_actor(kept)[0].to(device).eval()
    student = copied(start)
    assert isinstance(student, Actor)
    student.to(device)
    draw = np.random.default_rng(derive_seed(check_seed(seed), "lessons"))
    optimizer = torch.optim.Adam(student.parameters(), lr=lessons.learning_rate)
    asked = EnsemblePolicy(teacher, start.observation_space, device=device)
    seen, wanted = [], []
    with run.bar("student", lessons.rounds) as advance:
        for number in range(lessons.rounds):
            policy = EnsemblePolicy(student, device=device)
            new = collect_observations(policy, course(number), count=lessons.observations)
            seen.append(new.cpu())
            wanted.append(asked.log_probabilities(new).float().clone().cpu())
            states, targets = torch.cat(seen), torch.cat(wanted)
            total = 0.0
            order = torch.from_numpy(draw.permutation(len(states)))
            for chosen in torch.split(order, lessons.batch_size):
                own = student(states[chosen].to(device)).float().log_softmax(-1)
                loss = F.kl_div(own, targets[chosen].to(device), log_target=True,
                                reduction="batchmean")  # fmt: skip
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach()) * len(chosen)
            run.scalar("student/divergence", total / len(states), number)
            advance(1, f"KL {total / len(states):.4f}")
    student.eval()
    if kept is not None:
        save_actor(kept, student, about={})
        run.record("student", "taught", True)
    return student
