"""Damaged and forged files against the loaders: a clear error every time, or the very same content.

    python benchmarks/damage.py --count 10000

For each kind of file: random bytes flipped, cut, removed, doubled and swapped, lengths in the
header blown up; and, under a checksum that fits, other versions and kinds, tensors of another shape
or name, and fields that make no sense. The last may be well-formed, and then load: a checksum finds
damage, it is no signature. No file may crash the loader, or load as something else unnoticed.
"""

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

from agents.impala import impala_actor
from agents.parents import load_actor, save_actor
from benchmarks.memory import peak_bytes
from configs.command_line import run
from evo_subnets import Child, Ensemble, files, quads
from evo_subnets.bindings import Binding
from evo_subnets.evolution import keep_child, kept_children
from evo_subnets.files.checkpoints import Checkpoint
from evo_subnets.files.parents import load_parent, save_parent
from evo_subnets.models import build
from evo_subnets.runs import Run
from evo_subnets.runs.report import table
from evo_subnets.runs.tracking import bar
from evo_subnets.tuning import Tuning

ANOTHER = "another content"
NONSENSE: tuple[Any, ...] = (
    None, -1, 10**30, 1e308, "", "x" * 10_000, [], [[]], {}, [None], {"a": {}}, True, [1e999],
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Loads damaged files and counts what happens."""

    count: int = 10_000
    """Damaged files of each kind."""
    seed: int = 0
    """Seed of the damage."""
    tiny: bool = False
    """A rehearsal with 100 files of each kind."""


@dataclass(frozen=True)
class Kind:
    """A file, what loads it, and what it then says, to be compared."""

    name: str
    path: Path
    load: Callable[[], Any]


def network(seed: int = 0) -> nn.Module:
    return build("mlp-8", (1, 8, 8), classes=10, seed=seed)


def kinds(folder: Path) -> list[Kind]:
    """The files, whole, with their loaders."""
    parent, asked = network(), {"sigma": 0.1, "seed": 3}
    about = {"model": "mlp-8", "classes": list(range(10))}
    Ensemble.from_mutations(parent, quads(4, 0.1, density=0.5, seed=0)).save(folder / "recipes")
    Ensemble([network(1), network(2)]).save(folder / "members")
    save_parent(folder / "parent", parent, about=about)
    actor = impala_actor((2, 2, 2), 1, features_dim=4)
    save_actor(folder / "actor", actor, about={"game": "bigfish"})
    with Run(folder) as run:
        run.ask("search", asked)
        run.once("sigma", lambda: 0.5)
        for mutation in quads(8, 0.1, density=0.5, seed=0):
            keep_child(run, Child(mutation, 1.5))
    tuning = {"tuning": repr(Tuning(2)), "seed": 1, "images": 9}
    module, generator = network(), torch.Generator()
    optimizer = Tuning(2).make_optimizer(module)
    sum(weight.sum() for weight in module.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    Checkpoint(folder / "checkpoint", tuning).save(
        module, optimizer, binding=Binding(), generator=generator, device=torch.device("cpu"),
        losses=[0.5], last=True,
    )  # fmt: skip

    def load_ensemble(name: str, restore: bool) -> Any:
        ensemble = Ensemble.load(folder / name, network(), restore=restore)
        return files.fingerprint(ensemble.state_dict())

    def load_a_parent() -> Any:
        module = network(5)
        load_parent(folder / "parent", module, about=about, must=about)
        return files.fingerprint(module.state_dict())

    def load_an_actor() -> Any:
        actor, found = load_actor(folder / "actor")
        return files.fingerprint(actor.state_dict()), found

    def load_a_journal() -> Any:
        with Run(folder) as found:
            found.ask("search", asked)
            return found.once("sigma", lambda: None), kept_children(found)

    def load_a_checkpoint() -> Any:
        module = network(6)
        optimizer = Tuning(2).make_optimizer(module)
        losses = Checkpoint(folder / "checkpoint", tuning).restore(
            module,
            optimizer,
            binding=Binding(),
            generator=torch.Generator(),
            device=torch.device("cpu"),
        )
        return files.fingerprint(module.state_dict()), losses

    return [
        Kind("ensemble of recipes", folder / "recipes", lambda: load_ensemble("recipes", False)),
        Kind("the same, restored", folder / "recipes", lambda: load_ensemble("recipes", True)),
        Kind("ensemble of members", folder / "members", lambda: load_ensemble("members", False)),
        Kind("parent", folder / "parent", load_a_parent),
        Kind("Procgen parent", folder / "actor", load_an_actor),
        Kind("journal", folder / "journal.json", load_a_journal),
        Kind("checkpoint", folder / "checkpoint", load_a_checkpoint),
    ]


def damaged(whole: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The name of some damage, and bytes that have suffered it."""
    way = rng.choice(("bits", "truncated", "removed", "doubled", "swapped", "huge", "garbage"))
    size = len(whole)
    at, length = rng.randrange(size), rng.randrange(1, 64)
    data = bytearray(whole)
    if way == "bits":
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif way == "truncated":
        data = data[:at]
    elif way == "removed":
        del data[at : at + length]
    elif way == "doubled":
        data[at:at] = data[at : at + length]
    elif way == "swapped":
        other = rng.randrange(size)
        data[at], data[other] = data[other], data[at]
    elif way == "huge":  # the header's length, or a number in it
        if rng.random() < 0.3:
            data[:8] = rng.choice((2**63 - 1, 2**40, 2**32, 2**20)).to_bytes(8, "little")
        else:
            digits = [index for index, byte in enumerate(data[:4000]) if chr(byte).isdigit()]
            place = rng.choice(digits)
            data[place : place + 1] = b"9" * rng.choice((5, 20, 400, 5000))
    else:
        data[at : at + length] = rng.randbytes(length)
    return way, bytes(data)


def forged(path: Path, rng: random.Random) -> tuple[str, bytes]:
    """Another version or kind, or fields that make no sense, under a checksum that fits."""
    way = rng.choice(("version", "kind", "field", "field", "field", "tensor"))
    version = files.writing.VERSION
    try:
        if path.suffix == ".json":
            content = files.read_json(path)
            if way == "version":
                files.writing.VERSION = str(rng.randrange(2, 100))
            else:
                way = "field"
                spoil(content, rng)
            files.write_json(path, content)
        else:
            kind = written_kind(path)
            tensors, description = files.load_tensors(path, kind)
            name = rng.choice(list(tensors))
            if way == "version":
                files.writing.VERSION = str(rng.randrange(2, 100))
            elif way == "kind":
                kind += "x"
            elif way == "field":
                spoil(description, rng)
            else:
                tensor = tensors.pop(name)
                if rng.random() < 0.5:
                    tensors[rng.choice((name, name + "x"))] = tensor.reshape(-1)[:-1].clone()
            files.save_tensors(path, tensors, kind=kind, description=description)
    finally:
        files.writing.VERSION = version
    return f"forged {way}", path.read_bytes()


def written_kind(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        kind: str = file.metadata()["kind"]
        return kind


def spoil(content: Any, rng: random.Random) -> None:
    """Puts nonsense in the place of a field, somewhere."""
    keys: list[Any] = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = rng.choice(keys)
    inner = content[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
        spoil(inner, rng)
    elif isinstance(content, dict) and rng.random() < 0.3:
        del content[key]
    else:
        content[key] = rng.choice(
            [value for value in NONSENSE if value != inner and value != [1e999]]
        )


def outcome(kind: Kind, data: bytes, expected: Any) -> str:
    """ "refused", "the same", ANOTHER, or what must not be."""
    kind.path.write_bytes(data)
    try:
        found = kind.load()
    except ValueError as error:
        return "refused" if len(str(error).splitlines()) == 1 else "refused in many lines"
    except Exception as error:
        return f"crashed: {type(error).__name__}: {str(error)[:200]}"
    return "the same" if found == expected else ANOTHER


def main(args: Args) -> None:
    count = 100 if args.tiny else args.count
    wrong: Counter[str] = Counter()
    lines = []
    with tempfile.TemporaryDirectory() as folder, bar("files", 7 * count) as advance:
        for kind in kinds(Path(folder)):
            rng = random.Random(f"{args.seed} {kind.name}")
            whole, expected = kind.path.read_bytes(), kind.load()
            outcomes: Counter[str] = Counter()
            slowest = 0.0
            for _ in range(count):
                kind.path.write_bytes(whole)
                forge = rng.random() < 0.3
                way, data = forged(kind.path, rng) if forge else damaged(whole, rng)
                start = time.monotonic()
                found = outcome(kind, data, expected)
                slowest = max(slowest, time.monotonic() - start)
                if found == ANOTHER and way == "forged field":
                    found = "well-formed"
                if found not in ("refused", "the same", "well-formed"):
                    wrong[f"{kind.name}, {way}: {found}"] += 1
                    found = "wrong"
                outcomes[found] += 1
                advance(1, kind.name)
            kind.path.write_bytes(whole)
            lines.append(
                [kind.name, str(count), str(outcomes["refused"]), str(outcomes["the same"]),
                 str(outcomes["well-formed"]), str(outcomes["wrong"]), f"{slowest:.3f} s"]
            )  # fmt: skip
    memory = peak_bytes() / 2**30
    print(
        table(
            [
                "file",
                "damaged",
                "refused",
                "same content",
                "forged, well-formed",
                "wrong",
                "slowest",
            ],
            lines,
        )
    )
    print(f"\nlargest memory of this process: {memory:.2f} GiB")
    for text, number in wrong.most_common(20):
        print(f"{number} times {text}")
    sys.exit(1 if wrong or memory > 1 else 0)


if __name__ == "__main__":
    run(lambda: tyro.cli(Args), main)
