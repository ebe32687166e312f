"""The state of one environment, and whether the simulator may be given it.

Procgen's C++ code ends the process where the bytes of a state are not its own, so none reach it
that were not looked at here.
"""

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from envs.games import MODES, Mode, whole

Frames = npt.NDArray[np.uint8]

VERSION = 0
"""Of Procgen's format: four bytes, then the game's name, its length first."""
MODE_AT = 7
"""The mode is the eighth of the options, four bytes each, that follow the name."""
END = struct.pack("<I", 0xCAFECAFE)


class SlotState(NamedTuple):
    """Everything that decides how one environment goes on: exact, and portable between slots."""

    simulator: bytes
    frames: Frames
    """Shape (64, 64, 3 * frame_stack)."""
    elapsed: int
    checksum: int
    """Of `simulator`: the process ends with bytes that Procgen cannot read."""


def checksum(simulator: bytes) -> int:
    """Four bytes that change with any damage to a few of the state's."""
    return zlib.crc32(simulator)


def check_state(state: Any, *, game: str, mode: Mode, shape: tuple[int, ...]) -> SlotState:
    """The state; a ValueError where it is damaged, or not of this game, mode and frame stack.

    shape: of an environment's frames.
    """
    if not isinstance(state, SlotState):
        raise ValueError(f"expected states of get_state(), got a {type(state).__name__}")
    if not isinstance(state.simulator, bytes):
        raise ValueError(f"a state's bytes are bytes, got a {type(state.simulator).__name__}")
    theirs = _origin(state.simulator)
    expected = whole("a state's checksum", state.checksum, low=0)
    if theirs is None or expected != checksum(state.simulator):
        raise ValueError("a state's bytes are damaged: save it again with get_state()")
    if theirs != (game, mode):
        raise ValueError(
            f"this simulator plays {game} in mode {mode}, the state is of {theirs[0]} in mode "
            f"{theirs[1]}: give it to a simulator of that game and mode"
        )
    found = (getattr(state.frames, "shape", None), str(getattr(state.frames, "dtype", None)))
    if not isinstance(state.frames, np.ndarray) or found != (shape, "uint8"):
        raise ValueError(
            f"expected frames of shape {shape} and uint8 in a state, got {found[0]} and "
            f"{found[1]}: the frame stacks must be the same"
        )
    whole("a state's elapsed", state.elapsed, low=0, high=2**31 - 1)
    return state


def _origin(simulator: bytes) -> tuple[str, str] | None:
    """The game and the mode that a state's bytes are of; None where they are none of a state."""
    if len(simulator) < 8 or not simulator.endswith(END):
        return None
    version, length = struct.unpack_from("<2i", simulator)
    mode_at = 8 + length + 4 * MODE_AT
    if version != VERSION or not 0 < length < 32 or len(simulator) < mode_at + 4:
        return None
    (mode,) = struct.unpack_from("<i", simulator, mode_at)
    name = simulator[8 : 8 + length].decode(errors="replace")
    return (name, MODES[mode]) if 0 <= mode < len(MODES) else None
