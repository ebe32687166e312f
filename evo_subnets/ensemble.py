"""Members' predictions combined into one (Whitaker 2023, section 3.2.5)."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from evo_subnets import engines, files
from evo_subnets.answers import checked
from evo_subnets.mutation import Mutation, materialize
from evo_subnets.outputs import Classes, Combine, Outputs
from evo_subnets.subnetworks import Include, Params, included, parameters
from evo_subnets.values import as_read, as_written

KIND = "evo_subnets.ensemble"
CLASSES = Classes()


@dataclass(frozen=True)
class Recipe:
    """What an ensemble of mutations is made of."""

    parent: dict[str, Tensor]
    include: tuple[str, ...]
    mutations: tuple[Mutation, ...]
    include_parent: bool


class Ensemble(nn.Module):
    """Models as one model, in eval mode: of classes it gives log-probabilities.

    outputs: what the members' outputs mean, and so what combines them: `Classes()`, or on an axis,
    `Binary()`, `Values()`, `Distribution(make)` (see `outputs` and `values`). combine: "mean"
    averages the members' probabilities, or values, "logits" their logits, "vote" counts their most
    likely classes (so that a class without a vote has log-probability -inf). `weights`, one for
    each member, make any of these a weighted mean; a member of weight zero counts for nothing.

    `side_by_side`: on a CPU members may have a thread each, where that is faster, and see the batch
    in slices. For members of which a row's output does not depend on the other rows, and that have
    no hooks, draw no random numbers and keep nothing in a forward pass; and where no mode or
    transform of torch is on.
    """

    weights: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        combine: Combine = "mean",
        *,
        weights: Sequence[float] | None = None,
        side_by_side: bool = False,
        outputs: Outputs = CLASSES,
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if combine not in get_args(Combine):
            raise ValueError(f"combine must be one of {get_args(Combine)}, got {combine!r}")
        if combine not in outputs.combines:
            raise ValueError(
                f"combine={combine!r} means nothing for outputs of {type(outputs).__name__}: it is "
                f"one of {', '.join(outputs.combines)}"
            )
        given = [1.0] * len(members) if weights is None else [float(w) for w in weights]
        if len(given) != len(members) or not 0 < sum(given) < math.inf or not min(given) >= 0:
            raise ValueError(
                f"weights must be {len(members)} finite numbers, none negative and not all zero, "
                f"got {weights}"
            )
        self.members = nn.ModuleList(members)
        self.combine: Combine = combine
        self.register_buffer("weights", torch.tensor(given) / math.fsum(given), persistent=False)
        self.given_weights = given  # as given: normalising them twice moves them
        self.recipe: Recipe | None = None
        self.side_by_side = side_by_side
        self.outputs = outputs
        self.eval()

    @classmethod
    def from_mutations(
        cls,
        module: nn.Module,
        mutations: Sequence[Mutation],
        *,
        include_parent: bool = False,
        combine: Combine = "mean",
        weights: Sequence[float] | None = None,
        include: Include = None,
        side_by_side: bool = False,
        outputs: Outputs = CLASSES,
    ) -> "Ensemble":
        """The children of `module`, each a module of its own; with `include_parent` it comes first.

        BatchNorm keeps the parent's statistics, as in the paper: the noise within a trust region
        moves them little. Re-estimate them (`torch.optim.swa_utils.update_bn`) for strong noise.
        """
        parent = parameters(module)
        names = included(parent, include)
        members = [copy.deepcopy(module)] if include_parent else []
        for mutation in mutations:
            member = copy.deepcopy(module)
            materialize(parent, mutation, out=parameters(member), include=names)
            members.append(member)
        ensemble = cls(
            members, combine=combine, weights=weights, side_by_side=side_by_side, outputs=outputs
        )
        state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        ensemble.recipe = Recipe(state, tuple(names), tuple(mutations), include_parent)
        return ensemble

    def member_logits(self, *inputs: Any, **named: Any) -> Tensor:
        """(members, batch, ...): what each member says, as its kind of outputs reads it."""
        read = checked(self.outputs.read)
        if self.side_by_side and not named:
            found = engines.ask_members(self.members, inputs, read=read)
            if found is not None:
                return found
        return torch.stack([read(member(*inputs, **named)) for member in self.members])

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """(batch, classes) log-probabilities; of other outputs what their kind says."""
        return self.combined(self.member_logits(*inputs, **named))

    def combined(self, members: Tensor) -> Tensor:
        """The ensemble's outputs, of (members, batch, ...) of its members'."""
        return self.outputs.combined(members, self.weights, combine=self.combine)

    def spread(self, *inputs: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the members' values, or of their distributions' mixture;
        a ValueError where outputs are classes."""
        return self.outputs.spread(self.member_logits(*inputs, **named), self.weights)

    def save(self, path: str | Path, parent_weights: bool = True) -> None:
        """Writes the parent's weights once and four numbers a member, whole or not at all.

        `parent_weights=False` leaves the weights out: what remains is some hundred bytes, among
        them the parent's fingerprint. Members that are no mutations, as tuned children are, are
        written with all their weights.
        """
        if self.recipe is None:
            self._save_members(path)
            return
        recipe = self.recipe
        description = {
            "fingerprint": files.fingerprint(recipe.parent),
            "include": recipe.include,
            "mutations": [dataclasses.astuple(mutation) for mutation in recipe.mutations],
            "include_parent": recipe.include_parent,
            "combine": self.combine,
            "weights": self.given_weights,
            **self._kind(),
        }
        files.save_tensors(
            path, recipe.parent if parent_weights else {}, kind=KIND, description=description
        )

    def _save_members(self, path: str | Path) -> None:
        tensors = {
            f"{index}.{name}": tensor
            for index, member in enumerate(self.members)
            for name, tensor in member.state_dict().items()
        }
        description = {
            "members": len(self.members),
            "combine": self.combine,
            "weights": self.given_weights,
            **self._kind(),
        }
        files.save_tensors(path, tensors, kind=KIND, description=description)

    def _kind(self) -> dict[str, Any]:
        """What a file says of the outputs: nothing of `Classes()`, as files of before."""
        written = as_written(self.outputs)
        return {} if written is None else {"outputs": written}

    @classmethod
    def _load_members(
        cls, path: str | Path, module: nn.Module, tensors: Params, description: dict[str, Any]
    ) -> "Ensemble":
        members = []
        for index in range(description["members"]):
            member = copy.deepcopy(module)
            start = f"{index}."
            state = {
                name.removeprefix(start): tensor
                for name, tensor in tensors.items()
                if name.startswith(start)
            }
            files.load_state(path, member, tensors=state)
            members.append(member)
        return cls(
            members,
            combine=description["combine"],
            weights=description["weights"],
            outputs=description["outputs"],
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        module: nn.Module,
        *,
        restore: bool = False,
        outputs: Outputs | None = None,
    ) -> "Ensemble":
        """The ensemble of a file that `save` wrote, on `module`'s device.

        `module` must be the parent: a ValueError says so if its weights are others. With `restore`
        it gives only the architecture, and the parent's weights come from the file. Members that
        were written with all their weights need the architecture alone. `outputs`: None is what the
        file says; those with functions of one's own are given again.
        """
        tensors, description = files.load_tensors(path, KIND)
        description["outputs"] = as_read(description.get("outputs"), outputs)
        try:
            if "members" in description:
                return cls._load_members(path, module, tensors, description)
            return cls._load_mutations(path, module, tensors, description, restore)
        except files.StorageError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            line = " ".join(str(error).split())[:300]
            raise files.StorageError(f"{path}: not a whole ensemble: {line}") from None

    @classmethod
    def _load_mutations(
        cls,
        path: str | Path,
        module: nn.Module,
        tensors: Params,
        description: dict[str, Any],
        restore: bool,
    ) -> "Ensemble":
        parent = module
        if restore:
            if not tensors:
                raise files.StorageError(f"{path} holds no weights of the parent to restore")
            parent = copy.deepcopy(module)
            files.load_state(path, parent, tensors=tensors)
        found = files.fingerprint(parent.state_dict())
        if found != description["fingerprint"]:
            raise files.StorageError(
                f"{path} was made of another parent: fingerprint "
                f"{description['fingerprint'][:12]}, this module's is {found[:12]}; load it onto "
                "that parent, or pass restore=True to take the weights of the file"
            )
        mutations = [Mutation(*numbers) for numbers in description["mutations"]]
        return cls.from_mutations(
            parent,
            mutations,
            include_parent=description["include_parent"],
            combine=description["combine"],
            weights=description["weights"],
            include=description["include"],
            outputs=description["outputs"],
        )
