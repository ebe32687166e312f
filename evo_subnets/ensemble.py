"""Members' predictions combined into one (Whitaker 2023, section 3.2.5)."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from evo_subnets import engines, files
from evo_subnets.mutation import Mutation, materialize
from evo_subnets.subnetworks import Include, Params, Whole, included, parameters, staying

Combine = Literal["mean", "vote", "logits"]

KIND = "evo_subnets.ensemble"


@dataclass(frozen=True)
class Recipe:
    """What an ensemble of mutations is made of."""

    parent: dict[str, Tensor]
    include: tuple[str, ...]
    mutations: tuple[Mutation, ...]
    include_parent: bool
    held: bool = False
    """Whether zeros or padding rows of the parent stayed as they are; else all was mutated."""


class Ensemble(nn.Module):
    """Models as one model, in eval mode, that gives log-probabilities.

    combine: "mean" averages the members' softmax probabilities, "logits" their logits, "vote"
    counts their most likely classes (so that a class without a vote has log-probability -inf).
    `weights`, one for each member, make any of these a weighted mean.

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
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if combine not in get_args(Combine):
            raise ValueError(f"combine must be one of {get_args(Combine)}, got {combine!r}")
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
    ) -> "Ensemble":
        """The children of `module`, each a module of its own; with `include_parent` it comes first.

        BatchNorm keeps the parent's statistics, as in the paper: the noise within a trust region
        moves them little. Re-estimate them (`torch.optim.swa_utils.update_bn`) for strong noise.
        """
        parent = parameters(module)
        names = included(parent, include)
        held = bool(staying(parent, names))
        members = [copy.deepcopy(module)] if include_parent else []
        for mutation in mutations:
            member = copy.deepcopy(module)
            materialize(parent, mutation, out=parameters(member), include=names)
            members.append(member)
        ensemble = cls(members, combine=combine, weights=weights, side_by_side=side_by_side)
        state = {name: tensor.detach().clone() for name, tensor in files.state_of(module).items()}
        chosen = names if isinstance(names, Whole) else tuple(names)
        ensemble.recipe = Recipe(state, chosen, tuple(mutations), include_parent, held)
        return ensemble

    def member_logits(self, *inputs: Tensor) -> Tensor:
        """(members, batch, classes): what each member says."""
        found = engines.ask_members(self.members, inputs) if self.side_by_side else None
        if found is not None:
            return found
        return torch.stack([member(*inputs) for member in self.members])

    def forward(self, *inputs: Tensor) -> Tensor:
        """(batch, classes) log-probabilities."""
        return self.combined(self.member_logits(*inputs))

    def combined(self, logits: Tensor) -> Tensor:
        """(batch, classes) log-probabilities of (members, batch, classes) member logits."""
        weights = self.weights.to(logits.dtype).view(-1, *[1] * (logits.ndim - 1))
        if self.combine == "logits":
            return (logits * weights).sum(dim=0).log_softmax(dim=-1)
        if self.combine == "vote":
            votes = nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1])
            return (votes * weights).sum(dim=0).log()
        return (logits.log_softmax(dim=-1) + weights.log()).logsumexp(dim=0)

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
            **({"held": True} if recipe.held else {}),
        }
        files.save_tensors(
            path, recipe.parent if parent_weights else {}, kind=KIND, description=description
        )

    def _save_members(self, path: str | Path) -> None:
        tensors = {
            f"{index}.{name}": tensor
            for index, member in enumerate(self.members)
            for name, tensor in files.state_of(member).items()
        }
        description = {
            "members": len(self.members),
            "combine": self.combine,
            "weights": self.given_weights,
        }
        files.save_tensors(path, tensors, kind=KIND, description=description)

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
        return cls(members, combine=description["combine"], weights=description["weights"])

    @classmethod
    def load(cls, path: str | Path, module: nn.Module, *, restore: bool = False) -> "Ensemble":
        """The ensemble of a file that `save` wrote, on `module`'s device.

        `module` must be the parent: a ValueError says so if its weights are others. With `restore`
        it gives only the architecture, and the parent's weights come from the file. Members that
        were written with all their weights need the architecture alone.
        """
        tensors, description = files.load_tensors(path, KIND)
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
        found = files.fingerprint(files.state_of(parent))
        if found != description["fingerprint"]:
            raise files.StorageError(
                f"{path} was made of another parent: fingerprint "
                f"{description['fingerprint'][:12]}, this module's is {found[:12]}; load it onto "
                "that parent, or pass restore=True to take the weights of the file"
            )
        mutations = [Mutation(*numbers) for numbers in description["mutations"]]
        names = description["include"]
        return cls.from_mutations(
            parent,
            mutations,
            include_parent=description["include_parent"],
            combine=description["combine"],
            weights=description["weights"],
            include=names if description.get("held") else Whole(names),
        )
