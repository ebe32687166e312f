"""What a trust region is measured on is none of what children are selected on."""

from itertools import chain, pairwise

import pytest
import torch
from networks import built, noise, pictures

from evo_subnets import Search, Task
from evo_subnets.data import Images
from evo_subnets.methods import Noisy
from evo_subnets.methods.apart import apart
from evo_subnets.task import as_data


def sorted_pictures(count=200, classes=4):
    """Pictures that stand class by class; pixels say which one it is."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    labels = torch.arange(count) * classes // count
    return Images(pixels.clone(), labels, pictures().augmentation)


def test_pictures_are_divided_with_the_classes_in_proportion():
    images = sorted_pictures()
    some, others = apart(images, most=1000, seed=0)
    assert len(some) == 40
    assert torch.bincount(some.labels).tolist() == [10] * 4
    assert torch.bincount(others.labels).tolist() == [40] * 4
    together = torch.cat([some.pixels, others.pixels])[:, 0, 0, 0]
    assert together.sort().values.tolist() == list(range(200))
    few, rest = apart(images, most=8, seed=1)
    assert torch.bincount(few.labels).tolist() == [2] * 4
    assert len(rest) == 192
    assert some.pixels[:8].tolist() != few.pixels.tolist()


@pytest.mark.parametrize("batches", [2, 3, 10, 25])
def test_a_stream_is_divided_by_batches_evenly(batches):
    data = as_data([(noise(3, 2, seed=i), torch.full((3,), i)) for i in range(batches)])
    found = set()
    for seed in range(6):
        some, others = ([t[0].item() for _, t in each.in_order(None)]
                        for each in apart(data, most=1000, seed=seed))  # fmt: skip
        assert sorted([*some, *others]) == list(range(batches))
        assert len(some) == max(1, round(batches / 5))
        gaps = [after - before for before, after in pairwise(some)]
        assert all(4 <= gap <= 6 for gap in gaps)
        found.add(tuple(some))
    assert len(found) > 1, "which ones is the seed's"


@pytest.mark.parametrize(
    "inputs", [noise(10, 2), (noise(10, 2), noise(10, 3)), {"x": noise(10, 2)}, [noise(10, 2)] * 2]
)
def test_a_single_batch_is_cut_in_two(inputs):
    data = as_data([(inputs, torch.arange(10))])
    some, others = (list(each.in_order(None)) for each in apart(data, most=1000, seed=0))
    targets = sorted(chain(*(targets.tolist() for _, targets in [*some, *others])))
    assert targets == list(range(10))
    for batch, wanted in (*some, *others):
        first = batch["x"] if isinstance(batch, dict) else batch
        first = first[0] if isinstance(first, tuple) else first
        assert torch.equal(first, noise(10, 2)[wanted])


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="1 validation samples are too few"):
        apart(sorted_pictures(1, 1), most=5, seed=0)
    with pytest.raises(ValueError, match="a single batch cannot be divided"):
        apart(as_data([(noise(1, 2), torch.zeros(1))]), most=5, seed=0)
    some, _ = apart(as_data([(noise(3, 2), torch.zeros(3))] * 3), most=5, seed=0)
    with pytest.raises(ValueError, match="set apart is not trained on"):
        some.training(None, torch.Generator())


def test_selection_never_sees_what_the_trust_region_is_measured_on():
    images, seen = sorted_pictures(), []

    class Watching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            seen.append(len(x))
            return self.layer(x.flatten(1))

    def metric(outputs, targets):
        return 0.0

    parent = built(Watching)
    task = Task(images, images, metric=metric)
    some, others = apart(task.selection, most=1000, seed=0)
    assert not set(map(int, some.pixels[:, 0, 0, 0])) & set(map(int, others.pixels[:, 0, 0, 0]))
    Noisy(Search(4, 2))(parent, task)
    assert sorted(seen[:3]) == [8, 16, 16], "a fifth for the trust region, in shares"
    assert 160 in seen, "and the others for selection"
    assert 200 not in seen
