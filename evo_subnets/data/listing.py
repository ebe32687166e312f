"""Which pictures a folder of class folders holds, and which are left out."""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

TORCHVISION = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""What its `ImageFolder` takes."""
SUFFIXES = (*TORCHVISION, ".gif", ".jfif", ".avif", ".jp2", ".heic", ".heif", ".svg")
"""Names of pictures. Those that Pillow cannot read are refused where they are decoded."""


def class_folders(folder: Path) -> list[Path]:
    """In the order of their names."""
    inside = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted((path for path in inside if path.is_dir()), key=lambda path: path.name)


def class_files(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """The pictures of each class, in its folder and the folders below, and the other files.

    Pictures are in the order of torchvision's `ImageFolder`. Raises ValueError for a folder without
    two classes, a class without pictures, links in a circle and folders that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder: expected one with class folders")
    classes, others = {}, [path for path in folder.iterdir() if not path.is_dir()]
    for path in class_folders(folder):
        files = walked(path)
        classes[path.name] = [file for file in files if _is_named_a_picture(file)]
        others += [file for file in files if not _is_named_a_picture(file)]
        if not classes[path.name]:
            raise ValueError(
                f"{path}: a class folder without pictures: expected {', '.join(SUFFIXES)}; "
                "fill it or remove it"
            )
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: classification needs at least two class folders, got {list(classes)}"
        )
    return classes, others


def files_beside(parts: Iterable[Path], folder: Path) -> list[Path]:
    """The files of a folder that are in none of its `parts`."""
    files = [path for path in folder.iterdir() if not path.is_dir()]
    for path in class_folders(folder):
        files += [] if path in parts else walked(path)
    return files


def warn_of_left_out(others: Iterable[Path]) -> None:
    """Names the first picture among files that no class has, whatever its name says.

    Raises ValueError for a link to nothing.
    """
    if left_out := next(filter(_is_a_picture, others), None):
        warnings.warn(
            f"{left_out} is a picture that is left out, perhaps not alone: pictures are read from "
            f"class folders, where names are not hidden and end in {', '.join(SUFFIXES)}; rename, "
            "move or remove it",
            RuntimeWarning,
            stacklevel=4,
        )


def walked(folder: Path) -> list[Path]:
    """The files below, in the order of their folders' paths and then their names.

    Links are followed, hidden folders are not.
    """
    return [Path(place, name) for place, names in sorted(_folders(folder)) for name in names]


def _folders(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    place = os.path.realpath(folder)
    if place in above:
        raise ValueError(f"{folder} lies in itself, through a link: remove the link")
    try:
        with os.scandir(folder) as inside:
            entries = sorted(inside, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(
            f"{folder} is a folder that cannot be read ({error.strerror}): allow it or move it away"
        ) from None
    yield str(folder), [entry.name for entry in entries if not entry.is_dir()]
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _folders(folder / entry.name, (*above, place))


def _is_named_a_picture(file: Path) -> bool:
    return not file.name.startswith(".") and file.suffix.lower() in SUFFIXES


def _is_a_picture(file: Path) -> bool:
    from PIL import Image

    if file.is_symlink() and not file.exists():
        raise ValueError(f"{file} is a link to nothing: mend or remove it")
    if _is_named_a_picture(file):
        return True
    if not file.is_file():  # a pipe would wait for ever
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(file).close()
        return True
    except Exception:  # what Pillow raises depends on the format
        return False
