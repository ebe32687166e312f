"""What all scripts share: options from dataclasses, errors in one line, a clean Ctrl-C."""

import contextlib
import io
import re
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

Args = TypeVar("Args")


def run(parser: Callable[[], Args], job: Callable[[Args], None]) -> None:
    """Does the job with what the tyro parser returns; ends the process where either fails.

    Exit status: 0, 2 for bad options, 1 for what goes wrong later, 130 for Ctrl-C.
    """
    args = parse(parser)
    threading.excepthook = _thread_error
    try:
        job(args)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written is left behind", file=sys.stderr)
        sys.exit(130)


def _thread_error(failure: threading.ExceptHookArgs) -> None:
    """A full disk that a writing thread meets is met, and told, by the main thread as well."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def parse(parser: Callable[[], Args]) -> Args:
    """What the tyro parser returns; its boxed error messages become one line."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return parser()
    except ValueError as error:  # of options within options
        print(f"error: {error} (--help lists the options)", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        words = " ".join(re.sub("[─│╭╮╰╯]", " ", caught.getvalue()).split())
        words = re.sub(
            r"^.*?(Error parsing [\w.-]+: |Parsing error |Unrecognized options (?=U))", "", words
        )
        words = re.sub(r" For full helptext.*$", "", words)
        print(f"error: {words} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


def choose_device(device: str) -> str:
    """ "auto" becomes "cuda" where there is a GPU, else "cpu"."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here: use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
