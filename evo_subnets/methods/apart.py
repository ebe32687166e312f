"""Samples that are none of the selection's: for the trust region, and for a choice at the end."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from evo_subnets.data import Images
from evo_subnets.data.splits import cut, stratified_order
from evo_subnets.inputs import batches_of
from evo_subnets.streams import uniform_levels
from evo_subnets.task import Batch, Data, Stream, samples_in


def apart(data: Data, *, seed: int, most: int | None = None, parts: int = 5) -> tuple[Data, Data]:
    """One of `parts` equal parts of the samples, at most `most`, and all others: what the one is
    for has not seen the other.

    Of pictures in memory it is a random sample with the classes in proportion. Of a stream it is
    whole batches that stand evenly over it. A ValueError where there are too few for both.
    """

    def wanted(count: int) -> int:
        return min(count if most is None else most, count // parts)

    if isinstance(data, Images):
        order = stratified_order(data.labels.cpu(), seed, purpose="apart").to(data.labels.device)
        some, others = cut(order, max(1, wanted(len(data))))
        if not len(some) or not len(others):
            raise ValueError(f"{len(data)} validation samples are too few: two are needed at least")
        return data[some.sort().values], data[others.sort().values]
    sizes = [samples_in(targets) for _, targets in data.in_order(None)]
    if len(sizes) == 1:
        data, sizes = _in_two(next(iter(data.in_order(None))), parts), [1, 1]
    share = wanted(sum(sizes)) / sum(sizes)
    count = min(max(1, round(share * len(sizes))), len(sizes) - 1)
    first = uniform_levels(seed, "apart", count=1).item() % len(sizes)
    chosen = {(int(first) + i * len(sizes) // count) % len(sizes) for i in range(count)}
    left = [number for number in range(len(sizes)) if number not in chosen]
    return _Some(data, sorted(chosen)), _Some(data, left)


def _in_two(batch: Batch, parts: int) -> Stream:
    """One batch as two, the first of one of so many parts."""
    inputs, targets = batch
    count = samples_in(targets)
    columns = tuple(inputs) if isinstance(inputs, list) else inputs
    rows = list(batches_of(columns, 1))
    if count < 2 or len(rows) != count:
        raise ValueError(
            "validation data of a single batch cannot be divided: give it in two or more, or a "
            "sigma and one generation, for which no samples are set apart"
        )
    first = max(1, count // parts)
    cuts = slice(0, first), slice(first, None)
    return Stream([(next(batches_of(_rows(columns, cut), count)), targets[cut]) for cut in cuts])


def _rows(inputs: Any, part: slice) -> Any:
    if isinstance(inputs, dict):
        return {name: value[part] for name, value in inputs.items()}
    return tuple(each[part] for each in inputs) if isinstance(inputs, tuple) else inputs[part]


class _Some:
    """Batches of these numbers of data that comes in the same order every time."""

    input_bytes = None

    def __init__(self, data: Data, numbers: Sequence[int]) -> None:
        self.data, self.numbers = data, frozenset(numbers)

    def steps(self, batch_size: int | None) -> int:
        """As many as were chosen."""
        return len(self.numbers)

    def in_order(self, batch_size: int | None) -> Iterator[Batch]:
        """As it comes."""
        for number, batch in enumerate(self.data.in_order(batch_size)):
            if number in self.numbers:
                yield batch

    def training(self, batch_size: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """Refused: in another order the numbers are of other batches."""
        raise ValueError("data that was set apart is not trained on")

    def bag(self, fraction: float, seed: int) -> Data:
        """Refused, as of every stream."""
        return self.data.bag(fraction, seed)
