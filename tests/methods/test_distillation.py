"""A student and its teachers: the loss, what is asked of them, and that it is learned."""

import pytest
import torch
import torch.nn.functional as F
from networks import noise, pictures
from networks import small_classifier as network

from evo_subnets import Ensemble
from evo_subnets.methods import Distillation, Independent, distil
from evo_subnets.methods.distillation import Lessons
from evo_subnets.outputs import Values
from evo_subnets.prediction import predict
from evo_subnets.schedules import Constant
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning

TASK = Task(pictures(64))
TUNING = Tuning(4, Constant(0.003), "adam", batch_size=16)


def test_the_teacher_is_asked_of_what_the_student_sees():
    teacher = Ensemble([network(1), network(2)])
    lessons = Lessons(TASK.train, teacher)
    generator, again = (torch.Generator().manual_seed(3) for _ in range(2))
    plain = TASK.train.training(16, again)
    for (inputs, targets), (same, labels) in zip(
        lessons.training(16, generator), plain, strict=True
    ):
        assert torch.equal(inputs, same)
        assert torch.equal(targets[:, 0].long(), labels)
        torch.testing.assert_close(targets[:, 1:], teacher(inputs))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("labels", [0.0, 0.3, 1.0])
def test_one_step_is_that_of_the_plain_loss(temperature, labels):
    """Hinton et al. 2015: soft targets weigh T squared."""
    student, plain, teacher = network(0), network(0), Ensemble([network(1), network(2)])
    task = Task([(noise(8, 1, 8, 8), torch.arange(8) % 4)])
    one_step = Tuning(1, Constant(0.1), momentum=0.0, weight_decay=0.0)
    distil(
        student, task, teacher=teacher, tuning=one_step, temperature=temperature, labels=labels
    )  # fmt: skip
    plain.train()
    ((inputs, targets),) = task.train.batches
    outputs, said = plain(inputs), teacher(inputs)
    p, q = (said / temperature).softmax(1), (outputs / temperature).softmax(1)
    soft = (p * (p.log() - q.log())).sum(1).mean()
    loss = labels * F.cross_entropy(outputs, targets) + (1 - labels) * temperature**2 * soft
    gradients = torch.autograd.grad(loss, list(plain.parameters()))
    for weight, gradient, now in zip(
        plain.parameters(), gradients, student.parameters(), strict=True
    ):
        torch.testing.assert_close(weight - 0.1 * gradient, now, rtol=1e-4, atol=1e-5)


def test_a_student_comes_near_its_teachers():
    teacher = Independent(2, TUNING, seed=1)(network, TASK).ensemble
    student = network(9)

    def divergence():
        said, answered = predict(teacher, TASK.train), predict(student, TASK.train)
        return F.kl_div(
            answered.log_softmax(1), said.log_softmax(1), reduction="batchmean", log_target=True
        ).item()

    before = divergence()
    distil(
        student, TASK, teacher=teacher, tuning=Tuning(12, Constant(0.003), "adam", batch_size=16)
    )
    assert divergence() < 0.3 * before
    assert not student.training


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Distillation(teachers=0), "teachers must be at least 1"),
        (lambda: teach(temperature=0.0), "temperature must be positive"),
        (lambda: teach(labels=1.5), "labels in"),
        (lambda: teach(Task(pictures(), outputs=Values())), "it takes no other task"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def teach(task=TASK, **options):
    distil(network(0), task, teacher=Ensemble([network(1)]), tuning=TUNING, **options)
