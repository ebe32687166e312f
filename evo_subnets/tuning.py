"""The one training loop, for parents and children, and its learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_subnets import engines
from evo_subnets.data import Augmentation, Images, batches
from evo_subnets.ensemble import Ensemble
from evo_subnets.files.checkpoints import Checkpoint
from evo_subnets.streams import derive_seed


class Schedule(Protocol):
    """The learning rate as a function of the progress: 0 before the first batch, 1 at the end."""

    def __call__(self, progress: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    rate: float = 0.001

    def __call__(self, progress: float) -> float:
        return self.rate


@dataclass(frozen=True)
class StepLinear:
    """`high` for half of the budget, linear to `low` at 90 %, then `low` (Whitaker 2023, 5.3)."""

    high: float = 0.1
    low: float = 0.001

    def __call__(self, progress: float) -> float:
        fraction = min(max((progress - 0.5) / 0.4, 0.0), 1.0)
        return self.high + (self.low - self.high) * fraction


@dataclass(frozen=True)
class OneCycle:
    """Up from `initial` to `maximum`, then down to `minimum`, by cosines (eq. 5.4 and 5.5)."""

    initial: float = 0.001
    maximum: float = 0.1
    minimum: float = 1e-7
    warm_up: float = 0.1
    """Fraction of the budget that goes up."""

    def __call__(self, progress: float) -> float:
        return self.between(self.initial, self.maximum, self.minimum, progress)

    def between(self, first: float, middle: float, last: float, progress: float) -> float:
        """The same two half cosines between other values."""
        if progress < self.warm_up:
            return _half_cosine(first, middle, progress / self.warm_up)
        return _half_cosine(middle, last, (progress - self.warm_up) / (1 - self.warm_up))


@dataclass(frozen=True)
class Cosine:
    """A half cosine from `maximum` to `minimum` (Loshchilov and Hutter 2017, without restarts)."""

    maximum: float = 0.1
    minimum: float = 0.0

    def __call__(self, progress: float) -> float:
        return _half_cosine(self.maximum, self.minimum, progress)


def _half_cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * fraction)) / 2


@dataclass(frozen=True)
class Tuning:
    """A training budget and what is done with it. The defaults are Whitaker 2023, section 5.3.3."""

    epochs: int
    """Passes over the training images, or over the bag where bagging leaves some out."""
    schedule: Schedule = StepLinear()
    """Learning rate, set anew for every batch."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with Nesterov momentum, or Adam (which takes neither momentum nor weight decay)."""
    batch_size: int = 128
    momentum: float = 0.9
    """Of SGD."""
    cycled_momentum: float | None = None
    """With a OneCycle schedule: momentum falls to this while the rate rises, and comes back."""
    weight_decay: float = 5e-4
    """Of SGD."""
    bagging: float = 1.0
    """Fraction of the training images, drawn without replacement, that the network sees."""
    bf16: bool = False
    """Forward passes in bfloat16 autocast; losses and weights stay float32. For GPUs: on a CPU
    without bfloat16 units it is many times slower."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                "a budget needs at least one epoch and one image a batch, "
                f"got epochs={self.epochs}, batch_size={self.batch_size}"
            )
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {self.optimizer!r}")
        if not 0 < self.bagging <= 1:
            raise ValueError(f"bagging must be in (0, 1], got {self.bagging}")
        if self.cycled_momentum is not None and not isinstance(self.schedule, OneCycle):
            raise ValueError("cycled_momentum goes with a OneCycle schedule")

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's trainable parameters."""
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if self.optimizer == "adam":
            return torch.optim.Adam(trainable, lr=self.schedule(0.0), fused=True)
        return torch.optim.SGD(
            trainable,
            lr=self.schedule(0.0),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )

    def set_rates(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Sets the learning rate, and the momentum where it cycles."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule(progress)
            if self.cycled_momentum is not None and self.optimizer == "sgd":
                assert isinstance(self.schedule, OneCycle)
                group["momentum"] = self.schedule.between(
                    self.momentum, self.cycled_momentum, self.momentum, progress
                )


class Binding(Protocol):
    """What holds a child to its subnetwork while it is tuned (see `subnetworks`, `annealing`)."""

    generator: torch.Generator | None
    """Of its own draws, if it draws: checkpoints keep its state."""

    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Gives the weights the values for the next forward and backward pass."""

    def before_step(self) -> None:
        """Corrects gradients, and weights where `before_pass` changed them, after `backward`."""


def tune(
    module: nn.Module,
    images: Images,
    augmentation: Augmentation,
    tuning: Tuning,
    seed: int = 0,
    binding: Binding | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Trains `module` in place by cross entropy, and leaves it in eval mode.

    The order of the images, their augmentation and dropout depend on `seed` alone. `on_epoch` gets
    the number of each finished epoch, from 1 on, and its mean loss. A loss that is not finite
    raises a ValueError at the end of the epoch.

    `checkpoint` is a file that is written between epochs: the same call goes on from there, with
    the same bits in the end, and has nothing left to do where the run was over. `on_epoch` then
    gets the epochs of before as well.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "images"))
    if tuning.bagging < 1:
        images = images[bag(len(images), tuning.bagging, seed).to(images.labels.device)]
    device = images.pixels.device
    optimizer = tuning.make_optimizer(module)
    steps = -(-len(images) // tuning.batch_size)
    kept = checkpoint and Checkpoint(
        checkpoint, {"tuning": repr(tuning), "seed": seed, "images": len(images)}
    )
    drawing = [generator, *([binding.generator] if binding and binding.generator else [])]
    losses: list[float] = []
    module.train()
    with own_randomness(derive_seed(seed, "dropout"), device):
        if kept:
            losses = kept.restore(module, optimizer, drawing, device)
        if on_epoch is not None:
            for epoch, mean in enumerate(losses):
                on_epoch(epoch + 1, mean)
        for epoch in range(len(losses), tuning.epochs):
            total = torch.zeros((), device=device)
            loader = batches(images, tuning.batch_size, augmentation, generator)
            for step, (inputs, labels) in enumerate(loader):
                passed = epoch + step / steps
                tuning.set_rates(optimizer, passed / tuning.epochs)
                if binding is not None:
                    binding.before_pass(passed, optimizer)
                with torch.autocast(device.type, torch.bfloat16, enabled=tuning.bf16):
                    logits = module(inputs)
                loss = F.cross_entropy(logits.float(), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                if binding is not None:
                    binding.before_step()
                optimizer.step()
                total += loss.detach() * len(labels)  # no host synchronisation inside an epoch
            mean = total.item() / len(images)
            if not math.isfinite(mean):
                raise ValueError(
                    f"training diverged: the loss is {mean} in epoch {epoch + 1}; "
                    "lower the learning rate"
                )
            losses.append(mean)
            if kept:
                last = epoch + 1 == tuning.epochs
                kept.save(module, optimizer, drawing, device, losses, last)
            if on_epoch is not None:
                on_epoch(epoch + 1, mean)
    if binding is not None:
        binding.before_pass(float(tuning.epochs), optimizer)
    module.eval()


def bag(count: int, fraction: float, seed: int) -> Tensor:
    """(round(fraction * count),) indices, ascending: a sample without replacement."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "bag"))
    return torch.randperm(count, generator=generator)[: max(1, round(fraction * count))].sort()[0]


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators (of dropout, of initialisation) are seeded; then as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


CPU_BATCH, BATCH = 100, 500
"""Pictures in a forward pass without gradients. A CPU's cache holds small batches: 500 pictures at
a time take LeNet-L 1.4 times as long (`benchmarks/population.py`). Linear layers are the faster for
large ones: an MLP of 1024 takes 1.5 times as long with 100."""


@torch.no_grad()
def predict(
    module: nn.Module,
    images: Images,
    augmentation: Augmentation,
    batch_size: int | None = None,
    *,
    side_by_side: bool = False,
) -> Tensor:
    """(samples, outputs) float32 outputs of `module` in eval mode, without augmentation.

    `batch_size=None`: what is fast for the module on the pictures' device. `side_by_side`: on a CPU
    a module with convolutions has a thread to a batch, and copies with the same weights. It must
    have no hooks, draw no random numbers and keep nothing in a forward pass; of torch's own layers
    and of `models` that is known, and they are asked so anyway.
    """
    inputs = inputs_for(module, images, augmentation, batch_size)
    return predict_inputs(module, inputs, side_by_side=side_by_side)


@torch.no_grad()
def predict_inputs(
    module: nn.Module, inputs: Iterable[Tensor], *, side_by_side: bool = False
) -> Tensor:
    """`predict` for pictures that are in batches and normalised already."""
    was_training = module.training
    module.eval()
    outputs = _asked([module], inputs, promised=side_by_side)[0]
    module.train(was_training)
    return outputs


def inputs_for(
    module: nn.Module, images: Images, augmentation: Augmentation, batch_size: int | None = None
) -> Iterator[Tensor]:
    """The pictures normalised, in batches and a layout in which `module` is fast."""
    convolutions = engines.has_convolutions(module)
    small = convolutions and images.pixels.device.type == "cpu"
    size = batch_size or (CPU_BATCH if small else BATCH)
    for inputs, _ in batches(images, size, augmentation):
        yield inputs if convolutions else inputs.contiguous()  # as flattening needs it


@torch.no_grad()
def predict_members(
    ensemble: Ensemble,
    images: Images,
    augmentation: Augmentation,
    batch_size: int | None = None,
    *,
    side_by_side: bool = False,
) -> Tensor:
    """(members, samples, outputs) of an ensemble: every metric can be computed from them.

    `side_by_side`: as for `predict`.
    """
    inputs = inputs_for(ensemble, images, augmentation, batch_size)
    return _asked(list(ensemble.members), inputs, promised=side_by_side)


def _asked(members: list[nn.Module], inputs: Iterable[Tensor], *, promised: bool) -> Tensor:
    """(members, samples, outputs) float32."""
    found = engines.ask_batches(members, inputs, promised=promised)
    if found is None:
        found = [torch.stack([member(some) for member in members]) for some in inputs]
    return torch.cat(found, dim=1).float()


@torch.no_grad()
def reestimate_norms(
    module: nn.Module, images: Images, augmentation: Augmentation, batch_size: int = BATCH
) -> None:
    """Sets BatchNorm's running statistics to the means over `images`, for the weights as they are.

    For weights that training has not seen: after noise, pruning or averaging (Izmailov et al.
    2018). A network without BatchNorm is left alone.
    """
    loader = (inputs for inputs, _ in batches(images, batch_size, augmentation))
    device = images.pixels.device
    with own_randomness(0, device):  # dropout draws while the statistics are taken
        torch.optim.swa_utils.update_bn(loader, module, device=device)
