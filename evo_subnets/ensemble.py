"""Members' predictions combined into one (Whitaker 2023, section 3.2.5)."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from evo_subnets import engines, files
from evo_subnets.copies import check_module, copied, differing_dtypes, dtypes_of, set_dtypes
from evo_subnets.mutation import Mutation, materialize
from evo_subnets.recipes import Kept, Recipe, WorkCopy, check_parent
from evo_subnets.subnetworks import Include, Params, included, parameters

Combine = Literal["mean", "vote", "logits"]

KIND = "evo_subnets.ensemble"


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
    members: nn.ModuleList | tuple[nn.Module, ...]
    parent: nn.Module | None
    """Of members that are kept as recipes; None where they are resident."""

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
        kept = all(isinstance(member, Kept) for member in members)
        self.members = tuple(members) if kept else nn.ModuleList(members)
        self.combine: Combine = combine
        self.register_buffer("weights", torch.tensor(given) / math.fsum(given), persistent=False)
        self.given_weights = given  # as given: normalising them twice moves them
        self.parent = None
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
        resident: bool = True,
    ) -> "Ensemble":
        """The children of `module`, each a module of its own; with `include_parent` it comes first.

        BatchNorm keeps the parent's statistics, as in the paper: the noise within a trust region
        moves them little. Re-estimate them (`torch.optim.swa_utils.update_bn`) for strong noise.

        `resident=False` keeps the members as recipes, which are built one after the other at every
        call: the ensemble has two copies of the weights, `parent` and one that is worked in,
        however many members there are. Such members give no gradients and are neither trained
        nor exported, and `torch.compile` gains nothing.
        """
        if side_by_side and not resident:
            raise ValueError("members that are built one after the other cannot go side_by_side")
        check_module(module)
        parent = parameters(module)
        names = included(parent, include)
        every: list[Mutation | None] = [*([None] if include_parent else []), *mutations]
        if resident:
            check_parent(module, names)
            members = [copied(module) for _ in every]
            for member, mutation in zip(members, every, strict=True):
                if mutation is not None:
                    materialize(parent, mutation, out=parameters(member), include=names)
        else:
            own = copied(module)
            work = WorkCopy(own, names)
            members = [Kept(work, mutation) for mutation in every]
        ensemble = cls(members, combine=combine, weights=weights, side_by_side=side_by_side)
        if resident:
            state = copy.deepcopy(dict(module.state_dict()))
        else:
            ensemble.parent, state = own.eval(), {}
        ensemble.recipe = Recipe(state, tuple(names), tuple(mutations), include_parent)
        return ensemble

    def train(self, mode: bool = True) -> "Ensemble":
        """Itself; a ValueError where members are kept as recipes, which are not trained."""
        for member in self.members:
            member.train(mode)
        super().train(mode)
        return self

    def member_logits(self, *inputs: Tensor) -> Tensor:
        """(members, batch, classes): what each member says."""
        found = None
        if self.side_by_side and isinstance(self.members, nn.ModuleList):
            found = engines.ask_members(self.members, inputs)
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
        them the parent's fingerprint. Members that are not what their recipe gives, bit by bit, as
        after tuning, re-estimated norms or `.half()`, are written with all their weights, as are
        those without a recipe; a ValueError where `parent_weights=False`. Members are built and
        compared one at a time.
        """
        recipe = self.recipe
        if recipe is not None and self.parent is not None:
            recipe = dataclasses.replace(recipe, parent=self.parent.state_dict())
        elif recipe is not None and not recipe.gives(list(self.members)):
            recipe = None
        if recipe is None:
            if not parent_weights:
                raise ValueError(
                    "these members are no mutations of one parent, or were changed since: they "
                    "can only be saved with all their weights (parent_weights=True)"
                )
            self._save_members(path)
            return
        description = {
            "fingerprint": files.fingerprint(recipe.parent),
            "include": recipe.include,
            "mutations": [dataclasses.astuple(mutation) for mutation in recipe.mutations],
            "include_parent": recipe.include_parent,
            "combine": self.combine,
            **self._described_weights(),
        }
        files.save_tensors(
            path, recipe.parent if parent_weights else {}, kind=KIND, description=description
        )

    def _described_weights(self) -> dict[str, Any]:
        """The weights as given, and the buffer's where it holds others by now."""
        given = torch.tensor(self.given_weights) / math.fsum(self.given_weights)
        now = self.weights.detach().cpu()
        if torch.equal(given.to(now.dtype), now):
            return {"weights": self.given_weights}
        numbers = now.double().tolist()
        if not (0 < sum(numbers) < math.inf and min(numbers) >= 0):
            raise ValueError(f"the ensemble's weights are no longer those of a mean: {numbers}")
        return {"weights": numbers, "exactly": True}

    def _save_members(self, path: str | Path) -> None:
        tensors = {
            f"{index}.{name}": tensor
            for index, member in enumerate(self.members)
            for name, tensor in member.state_dict().items()
        }
        description = {
            "members": len(self.members),
            "combine": self.combine,
            **self._described_weights(),
        }
        files.save_tensors(path, tensors, kind=KIND, description=description)

    @classmethod
    def _load_members(
        cls,
        path: str | Path,
        modules: Sequence[nn.Module],
        tensors: Params,
        description: dict[str, Any],
    ) -> "Ensemble":
        count = description["members"]
        if len(modules) not in (1, count):
            raise files.StorageError(
                f"{path} holds {count} members: give one module for all, or one for each, got "
                f"{len(modules)}"
            )
        members = []
        for index in range(count):
            start = f"{index}."
            state = {
                name.removeprefix(start): tensor
                for name, tensor in tensors.items()
                if name.startswith(start)
            }
            member = modules[index % len(modules)]
            try:
                members.append(_restored(path, member, state))
                set_dtypes(members[-1], dtypes_of(member.state_dict()))
            except files.StorageError as error:
                hint = "" if len(modules) > 1 else "; members of several need a module for each"
                raise files.StorageError(f"{error} (member {index + 1}{hint})") from None
        return cls(members, combine=description["combine"], weights=description["weights"])

    @classmethod
    def load(
        cls,
        path: str | Path,
        module: nn.Module | Sequence[nn.Module],
        *,
        restore: bool = False,
        resident: bool = True,
    ) -> "Ensemble":
        """The ensemble of a file that `save` wrote, on `module`'s device.

        `module` must be the parent: a ValueError says so if its weights are others. With `restore`
        it gives only the architecture, and the parent's weights come from the file. Members that
        were written with all their weights need the architecture alone, or one module for each
        member where they are of several.

        Weights of another precision than the module's are converted: children are built in the
        file's and rounded to the module's then. `resident`: see `from_mutations`.
        """
        modules = [module] if isinstance(module, nn.Module) else list(module)
        tensors, description = files.load_tensors(path, KIND)
        try:
            if "members" in description:
                if not resident:
                    raise files.StorageError(
                        f"{path} holds members with all their weights, no recipes: resident=True"
                    )
                ensemble = cls._load_members(path, modules, tensors, description)
            else:
                if len(modules) != 1:
                    raise files.StorageError(
                        f"{path} holds mutations of one parent: give that one module, got "
                        f"{len(modules)}"
                    )
                ensemble = cls._load_mutations(
                    path, modules[0], tensors, description, restore, resident
                )
            if description.get("exactly"):
                ensemble.weights.copy_(torch.tensor(description["weights"], dtype=torch.float64))
            return ensemble
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
        resident: bool,
    ) -> "Ensemble":
        parent, wanted = module, dtypes_of(module.state_dict())
        if restore:
            if not tensors:
                raise files.StorageError(f"{path} holds no weights of the parent to restore")
            parent = _restored(path, module, tensors)
        others = differing_dtypes(wanted, dtypes_of(tensors))
        if others and not (restore and resident):
            raise files.StorageError(
                f"{path} was made of another parent: {others}; pass restore=True (and "
                "resident=True) to have its members rounded to this module's types"
            )
        found = files.fingerprint(parent.state_dict())
        if found != description["fingerprint"]:
            raise files.StorageError(
                f"{path} was made of another parent: fingerprint "
                f"{description['fingerprint'][:12]}, this module's is {found[:12]}; load it onto "
                "that parent, or pass restore=True to take the weights of the file"
            )
        mutations = [Mutation(*numbers) for numbers in description["mutations"]]
        ensemble = cls.from_mutations(
            parent,
            mutations,
            include_parent=description["include_parent"],
            combine=description["combine"],
            weights=description["weights"],
            include=description["include"],
            resident=resident,
        )
        for member in ensemble.members if resident else []:
            set_dtypes(member, wanted)
        return ensemble


def _restored(path: str | Path, module: nn.Module, tensors: Params) -> nn.Module:
    """A copy of a module with the weights of a file, in the file's types."""
    made = copied(module)
    own = dtypes_of(made.state_dict())
    set_dtypes(made, {n: t.dtype for n, t in tensors.items() if n in own})
    files.load_state(path, made, tensors=tensors)
    return made
