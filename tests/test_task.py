"""Data of any kind: in memory, in loaders, in lists; inputs of any shape; refusals."""

import random

import pytest
import torch
import torch.nn.functional as F
from networks import all_same_bits, copied, mlp, noise, pictures
from networks import small_classifier as network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evo_subnets.inputs import ask
from evo_subnets.methods import Noisy, Sparse
from evo_subnets.outputs import Classes
from evo_subnets.prediction import Validation, predict, reestimate_norms
from evo_subnets.schedules import Constant
from evo_subnets.search import Search
from evo_subnets.task import Stream, Task
from evo_subnets.tuning import Tuning, tune

ADAM = Tuning(2, Constant(0.01), "adam")


def rows(count=60, seed=0):
    inputs = noise(count, 5, seed=seed)
    return inputs, inputs[:, :3].argmax(1)


def loader(count=60, *, shuffle=True, batch_size=16):
    return DataLoader(TensorDataset(*rows(count)), batch_size=batch_size, shuffle=shuffle)


def tuned(data, seed=0, tuning=ADAM):
    module = mlp()
    tune(module, Task(data), tuning=tuning, seed=seed)
    return copied(module.state_dict())


def test_a_loader_shuffles_by_the_seed_alone_and_moves_no_generator():
    """The fixture of all tests sees to the last."""
    first = tuned(loader(), 1)
    torch.manual_seed(99)  # somebody else's draws
    torch.rand(3)
    assert all_same_bits(first, tuned(loader(), 1))
    torch.manual_seed(0)
    assert not all_same_bits(first, tuned(loader(), 2))


def test_a_list_of_batches_is_trained_on_as_a_plain_loop_would():
    batches = [(x, y) for x, y in zip(rows()[0].split(16), rows()[1].split(16), strict=True)]
    reference = mlp()
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.01)
    for _ in range(2):
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(reference(inputs), targets).backward()
            optimizer.step()
    for name, weight in tuned(batches).items():
        torch.testing.assert_close(weight, reference.state_dict()[name])


def test_pictures_in_a_loader_are_what_they_are_in_memory():
    images, module = pictures(50), network()
    ((inputs, labels),) = images.in_order(50)
    stream = DataLoader(TensorDataset(inputs, labels), batch_size=7)
    torch.testing.assert_close(predict(module, stream), predict(module, images))
    assert Validation(stream)(module) == Validation(images)(module)
    other = network()
    reestimate_norms(module, stream)
    reestimate_norms(other, images, batch_size=7)
    torch.testing.assert_close(module[1].running_mean, other[1].running_mean)


class Two(nn.Module):
    """Sums of what two inputs say; keyword arguments have names."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


def two():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Two()


def test_inputs_may_be_tuples_and_mappings():
    left, right = noise(20, 3), noise(20, 4, seed=1)
    targets = (left.sum(1) + right.sum(1) > 0).long()
    kinds = [((left, right), targets)], [({"right": right, "left": left}, targets)]
    found = []
    for batches in kinds:
        module = two()
        assert torch.equal(ask(module, batches[0][0]), module(left, right))
        tune(module, Task(batches), tuning=Tuning(30, Constant(0.05), "adam"))
        found.append(module)
        assert Validation(batches)(module) > 0.9
    assert all_same_bits(copied(found[0].state_dict()), copied(found[1].state_dict()))


def test_the_loss_and_the_metric_are_arguments():
    inputs = noise(64, 5)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0])

    def squared(outputs, wanted):
        return (outputs[:, 0] - wanted).square().mean()

    def closeness(outputs, wanted):
        return -float(squared(outputs, wanted))

    batches = [(inputs, targets)]
    task = Task(batches, batches, loss=squared, metric=closeness)
    parent = mlp()
    before = closeness(predict(parent, batches), targets)
    tune(parent, task, tuning=Tuning(200, Constant(0.02), "adam"))
    after = closeness(predict(parent, batches), targets)
    assert after > before / 20
    found = Noisy(Search(4, 2, 0.01))(parent, task)
    assert max(child.fitness for child in found.children) == pytest.approx(after, abs=0.5)
    sparse = Sparse(2, tuning=Tuning(20, Constant(0.01), "adam"))(parent, task)
    assert len(sparse.ensemble.members) == 2


def test_accuracy_counts_nan_as_no_class():
    outputs = torch.tensor([[float("nan"), 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert Classes().metric(outputs, torch.tensor([0, 0, 0])) == pytest.approx(1 / 3)


class Counting:
    """An iterable without a length."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def test_an_iterable_without_a_length_is_counted_once():
    data = Counting([rows(8), rows(8, 1), rows(8, 2)])
    stream = Stream(data)
    assert [stream.steps(None), stream.steps(None)] == [3, 3]
    assert data.passes == 1


def test_a_loader_draws_what_it_draws_for_itself():
    random.seed(0)
    stream, drawn = Stream(loader()), torch.Generator().manual_seed(3)
    one, two_ = (list(stream.training(None, drawn)) for _ in range(2))
    assert not torch.equal(one[0][0], two_[0][0]), "a new order"
    again = list(stream.training(None, torch.Generator().manual_seed(3)))
    assert torch.equal(one[0][0], again[0][0])
    first, second = (list(stream.in_order(None)) for _ in range(2))
    assert torch.equal(first[0][0], second[0][0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Task(iter([rows()])), "can be passed through only once"),
        (lambda: Task(3), "data is an iterable of .inputs, targets., or Images, got a int"),
        (lambda: tuned([]), "the data has no batches"),
        (lambda: tuned([noise(3, 5)]), "batches of .inputs, targets., got a Tensor"),
        (lambda: tuned([(1, 2, 3)]), "got a tuple of 3"),
        (lambda: tuned(loader(), tuning=Tuning(batch_size=8)), "batch_size has no effect on a"),
        (lambda: tuned(loader(), tuning=Tuning(bagging=0.5)), "only of data in memory"),
        (lambda: Task(loader()).selection, r"give Task\(..., validation=\)"),
        (lambda: Task([((1, 2), 3)]).example(), "as many rows each, got a int among them"),
    ],
)
def test_what_is_no_data_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
