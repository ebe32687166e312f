"""Members' predictions combined into one (Whitaker 2023, section 3.2.5)."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evo_subnets import engines, files
from evo_subnets.copies import copied, differing_dtypes, dtypes_of, set_dtypes
from evo_subnets.inputs import ask
from evo_subnets.kinds import as_json, from_json, kind_of
from evo_subnets.mutation import Mutation, materialize
from evo_subnets.outputs import CLASSES, Combine, Distribution, Outputs, Values, check_combine
from evo_subnets.recipes import Kept, Recipe, WorkCopy, mutated
from evo_subnets.subnetworks import Include, Params, Units, Whole, parameters, staying

KIND = "evo_subnets.ensemble"


class Ensemble(nn.Module):
    """Models as one model, in eval mode, that gives log-probabilities of classes, or what else
    `outputs` says that its members give (see `evo_subnets.outputs`; None: what they say).

    combine: "mean" averages the members' softmax probabilities, "logits" their logits, "vote"
    counts their most likely classes (so that a class without a vote has log-probability -inf).
    `weights`, one for each member, make any of these a weighted mean. A member whose outputs are
    NaN makes the ensemble's NaN.

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
        outputs: Outputs | None = None,
        side_by_side: bool = False,
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        outputs = kind_of(members[0], outputs)
        check_combine(combine, outputs)
        given = [1.0] * len(members) if weights is None else [float(w) for w in weights]
        if len(given) != len(members) or not 0 < sum(given) < math.inf or not min(given) >= 0:
            raise ValueError(
                f"weights must be {len(members)} finite numbers, none negative and not all zero, "
                f"got {weights}"
            )
        kept = all(isinstance(member, Kept) for member in members)
        self.members = tuple(members) if kept else nn.ModuleList(members)
        self.parent = None
        self.combine: Combine = combine
        self.outputs = outputs
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
        outputs: Outputs | None = None,
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
        names, parent = mutated(module, include), parameters(module)
        held = bool(staying(parent, names))
        every: list[Mutation | None] = [*([None] if include_parent else []), *mutations]
        own = None
        if resident:
            members = [copied(module) for _ in every]
            for member, mutation in zip(members, every, strict=True):
                if mutation is not None:
                    materialize(parent, mutation, out=parameters(member), include=names)
        else:
            own = copied(module).eval()
            work = WorkCopy(own, names)
            members = [Kept(work, mutation) for mutation in every]
        ensemble = cls(
            members,
            combine=combine,
            weights=weights,
            outputs=kind_of(module, outputs),
            side_by_side=side_by_side,
        )
        ensemble.parent = own
        state = copy.deepcopy(files.state_of(module)) if own is None else {}
        chosen = names if isinstance(names, Whole | Units) else tuple(names)
        ensemble.recipe = Recipe(state, chosen, tuple(mutations), include_parent, held)
        return ensemble

    def train(self, mode: bool = True) -> "Ensemble":
        """Itself; a ValueError where members are kept as recipes, which are not trained."""
        for member in self.members:
            member.train(mode)
        super().train(mode)
        return self

    def member_outputs(self, *inputs: Any, **options: Any) -> Tensor:
        """(members, batch, ...): what each member says, as `outputs` reads it."""
        found = None
        if self.side_by_side and not options and isinstance(self.members, nn.ModuleList):
            found = engines.ask_members(self.members, inputs)
        if found is not None:
            return torch.stack([self.outputs.tensor(each) for each in found])
        return torch.stack(
            [
                self.outputs.tensor(member(*inputs, **options) if options else ask(member, inputs))
                for member in self.members
            ]
        )

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """(batch, classes) log-probabilities, or the combined outputs of another kind."""
        return self.combined(self.member_outputs(*inputs, **options))

    def combined(self, members: Tensor) -> Tensor:
        """What `forward` gives, of (members, batch, ...) member outputs, rounded to their dtype."""
        found = self.outputs.combined(_exact(members), self.weights, how=self.combine)
        return found.to(members.dtype) if found.is_floating_point() else found

    def spread(self, *inputs: Any, **options: Any) -> Tensor:
        """(batch, ...): the members' standard deviation around their mean, of real values; of
        distributions their mixture's."""
        if not isinstance(self.outputs, Values | Distribution):
            raise ValueError(
                f"members' spread is one of real values, these outputs are {self.outputs}: see "
                "metrics for the diversity of classes"
            )
        members = self.member_outputs(*inputs, **options)
        return self.outputs.spread(_exact(members), self.weights).to(members.dtype)

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
            held = bool(staying(parameters(self.parent), recipe.include))
            recipe = dataclasses.replace(recipe, parent=files.state_of(self.parent), held=held)
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
            "mutations": [mutation.numbers for mutation in recipe.mutations],
            "include_parent": recipe.include_parent,
            "combine": self.combine,
            **({} if self.outputs == CLASSES else {"outputs": as_json(self.outputs)}),
            **self._described_weights(),
            **({"held": True} if recipe.held else {}),
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
            for name, tensor in files.state_of(member).items()
        }
        description = {
            "members": len(self.members),
            "combine": self.combine,
            **({} if self.outputs == CLASSES else {"outputs": as_json(self.outputs)}),
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
                set_dtypes(files.unwrapped(members[-1]), dtypes_of(files.state_of(member)))
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
        outputs: Outputs | None = None,
    ) -> "Ensemble":
        """The ensemble of a file that `save` wrote, on `module`'s device.

        `module` must be the parent: a ValueError says so if its weights are others. With `restore`
        it gives only the architecture, and the parent's weights come from the file. Members that
        were written with all their weights need the architecture alone, or one module for each
        member where they are of several.

        Weights of another precision than the module's are converted: children are built in the
        file's and rounded to the module's then. `resident`: see `from_mutations`. `outputs`: their
        kind, where it has functions of its own, which no file can keep; None: the file's.
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
            kept = description.get("outputs", as_json(CLASSES))
            if kept is None and outputs is None:
                raise files.StorageError(
                    f"{path} holds no kind of outputs, for it has functions of its own: give "
                    "outputs="
                )
            ensemble.outputs = outputs or from_json(kept or [])
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
        parent, wanted = module, dtypes_of(files.state_of(module))
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
        found = files.fingerprint(files.state_of(parent))
        if found != description["fingerprint"]:
            raise files.StorageError(
                f"{path} was made of another parent: fingerprint "
                f"{description['fingerprint'][:12]}, this module's is {found[:12]}; load it onto "
                "that parent, or pass restore=True to take the weights of the file"
            )
        mutations = [Mutation(*numbers) for numbers in description["mutations"]]
        names = description["include"]
        ensemble = cls.from_mutations(
            parent,
            mutations,
            include_parent=description["include_parent"],
            combine=description["combine"],
            weights=description["weights"],
            include=included_by(names, held=bool(description.get("held"))),
            resident=resident,
        )
        for member in ensemble.members if resident else []:
            set_dtypes(files.unwrapped(member), wanted)
        return ensemble


def included_by(names: Any, *, held: bool) -> Include:
    """What a file's members mutate; held: zeros and padding rows of the parent stay."""
    if isinstance(names, dict):
        return Units(names)
    return names if held else Whole(names)


def _exact(members: Tensor) -> Tensor:
    """In float32 where they are coarser: sums and squares are rounded once, in the end."""
    return members.float() if members.dtype in (torch.float16, torch.bfloat16) else members


def _restored(path: str | Path, module: nn.Module, tensors: Params) -> nn.Module:
    """A copy of a module with the weights of a file, in the file's types."""
    made = copied(module)
    own = dtypes_of(files.state_of(made))
    set_dtypes(files.unwrapped(made), {n: t.dtype for n, t in tensors.items() if n in own})
    files.load_state(path, made, tensors=tensors)
    return made
