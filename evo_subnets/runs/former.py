"""The journal and tracker of scripts that are not written with `Run` yet; goes with the last."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any

from evo_subnets import files
from evo_subnets.evolution import Child
from evo_subnets.mutation import Mutation


class Journal:
    """`journal.json` of an output folder; whole or absent at any moment.

    `asked` are the options that the results depend on: a folder in which others were asked is
    refused with a ValueError that names them. `overwrite` starts afresh instead; it removes the
    `outputs`, files and folders by name, that an earlier run has left, except what `needed` is in.
    """

    def __init__(
        self,
        folder: str | Path,
        asked: Mapping[str, Any],
        overwrite: bool = False,
        outputs: Sequence[str] = (),
        needed: str | Path | None = None,
    ) -> None:
        self.path = Path(folder) / "journal.json"
        self.asked = {key: str(value) for key, value in asked.items()}
        self.found: dict[str, Any] = {}
        if self.path.exists() and not overwrite:
            self._read()
            return
        if overwrite:
            kept = [] if needed is None else [Path(needed), *Path(needed).parents]
            for name in outputs:
                if self.path.parent / name not in kept:
                    remove(self.path.parent / name)
        self._write()

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returned, as JSON: it is called where no earlier run has done so."""
        if name not in self.found:
            self.found[name] = files.as_json(compute())
            self._write()
        return self.found[name]

    def children(self, name: str) -> list[Child]:
        """The children that `add_child` was given."""
        try:
            return [_child(recipe, record) for recipe, record in self.found.get(name, {}).items()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise files.StorageError(f"{self.path}: {name} holds no children: {error}") from None

    def add_child(self, name: str, child: Child) -> None:
        """Keeps a child at once; one that is kept already stays as it is."""
        recipe = " ".join(map(repr, astuple(child.mutation)))
        if recipe not in self.found.setdefault(name, {}):
            fitness = repr(child.fitness)  # a string, as JSON knows neither inf nor NaN
            self.found[name][recipe] = {"fitness": fitness, "reason": child.reason}
            self._write()

    def _write(self) -> None:
        files.write_json(self.path, {"asked": self.asked, "found": self.found})

    def _read(self) -> None:
        try:
            content = files.read_json(self.path)
            asked, self.found = dict(content["asked"]), dict(content["found"])
        except (files.StorageError, KeyError, TypeError, ValueError) as error:
            raise files.StorageError(
                f"{error}; --overwrite starts afresh in {self.path.parent}"
            ) from None
        differ = [
            f"{key} {asked.get(key)} (now {self.asked.get(key)})"
            for key in sorted({*asked, *self.asked})
            if asked.get(key) != self.asked.get(key)
        ]
        if differ:
            raise ValueError(
                f"{self.path.parent} holds a run with {', '.join(differ)}: use another --out, or "
                "--overwrite to start afresh"
            )


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _child(recipe: str, record: Mapping[str, Any]) -> Child:
    seed, *numbers = recipe.split(" ")
    sigma, low, high = map(float, numbers)
    return Child(Mutation(int(seed), sigma, low, high), float(record["fitness"]), record["reason"])


class Tracker:
    """TensorBoard events in a folder; use it in a `with` statement.

    They take the place of those that an earlier run has left in the folder: a run that goes on
    where it was stopped tells its story from the beginning.
    """

    def __init__(self, folder: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in Path(folder).glob("events.out.tfevents.*"):
            old.unlink()
        self._writer: Any = SummaryWriter(str(folder))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        self._writer.add_scalar(tag, value, step)

    def histogram(self, tag: str, values: Sequence[float], step: int = 0) -> None:
        """A distribution; left out when it is empty."""
        if len(values):
            import numpy as np

            self._writer.add_histogram(tag, np.asarray(values, dtype=np.float64), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A text, rendered as Markdown."""
        self._writer.add_text(tag, markdown, step)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A row of TensorBoard's HPARAMS page, which compares the runs of a group."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in values.items()
        }
        self._writer.add_hparams(plain, dict(metrics), run_name=".")

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
