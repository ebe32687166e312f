"""What accompanies a training, step by step, and is kept with its checkpoints."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from evo_subnets import files
from evo_subnets.copies import copied

State = dict[str, Tensor]


class Binding:
    """Holds a network to something while it is tuned; a step is

        before_pass, forward, backward, before_step, the optimizer's step, after_step

    and `before_pass` is called once more at the end. Every method may be left as it is.
    """

    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Gives the weights the values for the next forward and backward pass. `epoch`: how many
        have passed, whole at the beginning of one."""

    def before_step(self) -> None:
        """Corrects gradients, and weights where `before_pass` changed them, after `backward`."""

    def after_step(self) -> None:
        """Looks at what the optimizer has made."""

    def state_dict(self) -> State:
        """What a checkpoint between two epochs must keep, as tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""


class Together(Binding):
    """Several bindings as one, in order."""

    def __init__(self, *bindings: Binding) -> None:
        self.bindings = bindings

    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Of each."""
        for binding in self.bindings:
            binding.before_pass(epoch, optimizer)

    def before_step(self) -> None:
        """Of each."""
        for binding in self.bindings:
            binding.before_step()

    def after_step(self) -> None:
        """Of each."""
        for binding in self.bindings:
            binding.after_step()

    def state_dict(self) -> State:
        """Of each, under its number."""
        return {
            f"{number}.{name}": value
            for number, binding in enumerate(self.bindings)
            for name, value in binding.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """To each its own."""
        for number, binding in enumerate(self.bindings):
            binding.load_state_dict(part(state, str(number)))


class Snapshots(Binding):
    """Copies of a network at the epochs `at`, which may be fractions, in rising order."""

    def __init__(self, module: nn.Module, at: Sequence[float]) -> None:
        self.module, self.at = module, tuple(at)
        self.kept: list[State] = []

    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Copies the network where one of the epochs has come."""
        while len(self.kept) < len(self.at) and epoch >= self.at[len(self.kept)]:
            state = files.state_of(self.module)
            self.kept.append({name: value.detach().clone() for name, value in state.items()})

    def models(self) -> list[nn.Module]:
        """Networks with what was kept, in eval mode."""
        found = []
        for state in self.kept:
            model = copied(self.module)
            model.load_state_dict(state)
            found.append(model.eval())
        return found

    def state_dict(self) -> State:
        """All copies."""
        return {
            f"{number}.{name}": value
            for number, state in enumerate(self.kept)
            for name, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As many as there are."""
        count = len({name.split(".")[0] for name in state})
        self.kept = [part(state, str(number)) for number in range(count)]


class Averaged(Binding):
    """The running mean of the weights at the epochs `at` (Izmailov et al. 2018, algorithm 1)."""

    def __init__(self, module: nn.Module, at: Sequence[float]) -> None:
        self.module, self.at, self.count = module, tuple(at), 0
        self.mean: State = {}

    @torch.no_grad()
    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Takes the weights in where one of the epochs has come."""
        while self.count < len(self.at) and epoch >= self.at[self.count]:
            self.count += 1
            for name, weight in files.parameters_of(self.module).items():
                if self.count == 1:
                    self.mean[name] = weight.detach().clone()
                else:
                    self.mean[name].lerp_(weight, 1 / self.count)

    @torch.no_grad()
    def model(self) -> nn.Module:
        """A network of the mean weights, in eval mode; its norms have the statistics of the last
        weights, which are to be estimated anew."""
        model = copied(self.module)
        for name, weight in files.parameters_of(model).items():
            weight.copy_(self.mean[name])
        return model.eval()

    def state_dict(self) -> State:
        """The mean, and of how many."""
        counted = torch.tensor(self.count)
        return {"count": counted, **{f"mean.{name}": value for name, value in self.mean.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.count, self.mean = int(state["count"]), part(state, "mean")


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """What stands under a prefix, without it."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): value for name, value in state.items() if name.startswith(start)
    }
