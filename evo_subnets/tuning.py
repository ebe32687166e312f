"""The one training loop, for parents and children."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from evo_subnets.bindings import Binding
from evo_subnets.files.checkpoints import Checkpoint
from evo_subnets.files.parents import load_parent, save_parent
from evo_subnets.inputs import ask, device_of, moved
from evo_subnets.options import refuse_idle
from evo_subnets.runs import Run
from evo_subnets.schedules import OneCycle, Schedule, StepLinear
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.task import Data, Task, check_finite, samples_in

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Tuning:
    """A training budget and what is done with it. The defaults are Whitaker 2023, section 5.3.3."""

    epochs: int = 1
    """Passes over the training data, or over the bag where bagging leaves some out."""
    schedule: Schedule = StepLinear()
    """Learning rate, set anew for every batch."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with Nesterov momentum, or Adam (which takes neither momentum nor weight decay)."""
    batch_size: int | None = None
    """Samples a training step; None: 128, or what a loader has."""
    momentum: float = 0.9
    """Of SGD."""
    cycled_momentum: float | None = None
    """With a OneCycle schedule: momentum falls to this while the rate rises, and comes back."""
    weight_decay: float = 5e-4
    """Of SGD."""
    bagging: float = 1.0
    """Fraction of the training data, drawn without replacement, that the network sees."""
    bf16: bool = False
    """Forward passes in bfloat16 autocast; losses and weights stay float32. For GPUs: on a CPU
    without bfloat16 units it is many times slower."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise ValueError(
                "a budget needs at least one epoch and one sample a batch, "
                f"got epochs={self.epochs}, batch_size={self.batch_size}"
            )
        if self.optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam', got {self.optimizer!r}")
        if not 0 < self.bagging <= 1:
            raise ValueError(f"bagging must be in (0, 1], got {self.bagging}")
        if self.cycled_momentum is not None and not isinstance(self.schedule, OneCycle):
            raise ValueError("cycled_momentum goes with a OneCycle schedule")
        if self.optimizer == "adam":
            refuse_idle(self, ("momentum", "weight_decay", "cycled_momentum"), because="Adam")

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a module's trainable parameters."""
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trainable:
            raise ValueError(
                f"a {type(module).__name__} has no parameter that is trained (requires_grad)"
            )
        if self.optimizer == "adam":
            return torch.optim.Adam(trainable, lr=self.schedule(0.0), fused=True)
        return torch.optim.SGD(
            trainable,
            lr=self.schedule(0.0),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )

    def steps(self, data: Data) -> int:
        """Training steps on this data, in all."""
        seen = data if self.bagging == 1 else data.bag(self.bagging, 0)
        return seen.steps(self.batch_size) * self.epochs

    def set_rates(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Sets the learning rate, and the momentum where it cycles."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule(progress)
            if self.cycled_momentum is not None and self.optimizer == "sgd":
                assert isinstance(self.schedule, OneCycle)
                group["momentum"] = self.schedule.between(
                    progress,
                    first=self.momentum,
                    middle=self.cycled_momentum,
                    last=self.momentum,
                )


def tune(
    module: nn.Module,
    task: Task,
    *,
    tuning: Tuning,
    seed: int = 0,
    binding: Binding | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Trains `module` in place on the task's training data, and leaves it in eval mode.

    The order of the samples, their augmentation and dropout depend on `seed` alone (and on what a
    loader draws from generators of its own). A batch of one sample, which the last one may be, is
    left out where the module has batch norms and there are others. `on_epoch` gets the number of
    each finished epoch, from 1 on, and its mean loss. A loss that is not finite raises a ValueError
    at the end of the epoch, and weights in float16, which cannot be trained, one at once.

    `checkpoint` is a file that is written between epochs: the same call goes on from there, with
    the same bits in the end, and has nothing left to do where the run was over. `on_epoch` then
    gets the epochs of before as well.
    """
    seed = check_seed(seed)
    _check_precision(module)
    generator = torch.Generator().manual_seed(derive_seed(seed, "images"))
    data: Data = task.train
    if tuning.bagging < 1:
        data = data.bag(tuning.bagging, seed)
    device = device_of(module)
    optimizer = tuning.make_optimizer(module)
    steps = data.steps(tuning.batch_size)
    about = {"tuning": repr(tuning), "seed": seed, "steps": steps}
    kept = None if checkpoint is None else Checkpoint(checkpoint, about)
    normed = any(isinstance(layer, BATCH_NORMS) for layer in module.modules())
    binding = binding or Binding()
    losses: list[float] = []
    module.train()
    with own_randomness(derive_seed(seed, "dropout"), device):
        if kept:
            losses = kept.restore(
                module, optimizer, binding=binding, generator=generator, device=device
            )
        if on_epoch is not None:
            for epoch, mean in enumerate(losses):
                on_epoch(epoch + 1, mean)
        for epoch in range(len(losses), tuning.epochs):
            total, samples = torch.zeros((), device=device), 0
            for step, batch in enumerate(data.training(tuning.batch_size, generator)):
                inputs, targets = moved(batch, device)
                if normed and steps > 1 and samples_in(targets) == 1:
                    continue  # one sample has no batch statistics
                passed = epoch + step / steps
                tuning.set_rates(optimizer, passed / tuning.epochs)
                binding.before_pass(passed, optimizer)
                with torch.autocast(device.type, torch.bfloat16, enabled=tuning.bf16):
                    outputs = ask(module, inputs)
                loss = task.loss_of(outputs, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                binding.before_step()
                optimizer.step()
                binding.after_step()
                count = samples_in(targets)
                total += loss.detach() * count  # no host synchronisation inside an epoch
                samples += count
            if not samples:
                raise ValueError(
                    "batch norms cannot be trained on one sample at a time: make batches larger"
                )
            losses.append(total.item() / samples)
            check_finite(losses[-1], epoch + 1)
            if kept:
                last = epoch + 1 == tuning.epochs
                if last:
                    binding.before_pass(float(tuning.epochs), optimizer)
                kept.save(
                    module, optimizer, binding=binding, generator=generator, device=device,
                    losses=losses, last=last,
                )  # fmt: skip
            if on_epoch is not None:
                on_epoch(epoch + 1, losses[-1])
    binding.before_pass(float(tuning.epochs), optimizer)
    module.eval()


def _check_precision(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if weight.requires_grad and weight.dtype == torch.float16:
            raise ValueError(
                f"{name} is float16, in which small gradients become zero: train module.float(), "
                "whose passes Tuning(bf16=True) makes cheaper, and round the result by .half()"
            )


def tune_once(
    module: nn.Module,
    task: Task,
    *,
    path: Path,
    about: Mapping[str, Any],
    tuning: Tuning,
    seed: int,
    run: Run,
) -> None:
    """Gives `module` the weights that lie at `path`, or trains it and writes them there.

    `about` is what the file says of itself; a file of which it says something else is refused.
    """
    if path.exists():
        load_parent(path, module, about=about, must=about)
        return
    with run.bar("parent", tuning.epochs) as advance:

        def on_epoch(epoch: int, loss: float) -> None:
            run.scalar("loss/parent", loss, epoch)
            advance(1, f"loss {loss:.3f}")

        tune(
            module, task, tuning=tuning, seed=seed, on_epoch=on_epoch,
            checkpoint=run.checkpoint(path.stem),
        )  # fmt: skip
    save_parent(path, module, about=about)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators (of dropout, of initialisation) are seeded; then as before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(check_seed(seed))
        yield
