"""The sixteen games of Procgen, their levels, and what options of theirs may be."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Mode = Literal["easy", "hard"]
MODES = ("easy", "hard")
MAX_ENVS, MAX_FRAMES, MAX_THREADS = 4096, 64, 256
"""Of one simulator: its C++ code ends the process where memory or threads run out."""


def whole(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """The option's integer, of Python or of numpy; a ValueError where it is none or out of range.

    Booleans are no integers, and neither are floats with a whole value.
    """
    integer = isinstance(value, int | np.integer)
    integer &= not isinstance(value, bool | np.timedelta64)  # which are integers to isinstance
    if integer and low <= value and (high is None or value <= high):
        return int(value)
    bounds = f"of at least {low}" if high is None else f"in {low}..{high}"
    raise ValueError(f"{name} must be an integer {bounds}, got {value!r}")


@dataclass(frozen=True)
class Game:
    """A game's time limit in steps, and its minimum and maximum return in each mode."""

    time_limit: int
    easy: tuple[float, float]
    hard: tuple[float, float]

    def returns(self, mode: Mode) -> tuple[float, float]:
        """The (minimum, maximum) return in a mode."""
        return self.easy if mode == "easy" else self.hard


# Minimum and maximum return: Cobbe et al. 2020, appendix C, as in the authors' released code. For
# easy jumper and easy leaper copies of the paper's table have a minimum of 3; the code's 1 and 1.5
# are used here, as most published normalised scores do.
GAMES: dict[str, Game] = {
    "bigfish": Game(6000, (1, 40), (0, 40)),
    "bossfight": Game(4000, (0.5, 13), (0.5, 13)),
    "caveflyer": Game(1000, (3.5, 12), (2, 13.4)),
    "chaser": Game(1000, (0.5, 13), (0.5, 14.2)),
    "climber": Game(1000, (2, 12.6), (1, 12.6)),
    "coinrun": Game(1000, (5, 10), (5, 10)),
    "dodgeball": Game(1000, (1.5, 19), (1.5, 19)),
    "fruitbot": Game(1000, (-1.5, 32.4), (-0.5, 27.2)),
    "heist": Game(1000, (3.5, 10), (2, 10)),
    "jumper": Game(1000, (1, 10), (1, 10)),
    "leaper": Game(500, (1.5, 10), (1.5, 10)),
    "maze": Game(500, (5, 10), (4, 10)),
    "miner": Game(1000, (1.5, 13), (1.5, 20)),
    "ninja": Game(1000, (3.5, 10), (2, 10)),
    "plunder": Game(4000, (4.5, 30), (3, 30)),
    "starpilot": Game(1000, (2.5, 64), (1.5, 35)),
}


def check_game(name: str) -> str:
    """The name of a game; a ValueError names the sixteen if there is no such game."""
    if not isinstance(name, str) or name not in GAMES:
        raise ValueError(f"there is no Procgen game {name!r}; the games are {', '.join(GAMES)}")
    return name


def check_mode(mode: Mode) -> Mode:
    """The mode; a ValueError where it is neither of the two."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"mode must be 'easy' or 'hard', got {mode!r}")
    return mode


def normalized_return(
    returns: float | npt.ArrayLike, game: str, *, mode: Mode = "easy"
) -> npt.NDArray[np.float64]:
    """(R - R_min) / (R_max - R_min) of `returns`, with the published constants of the game."""
    low, high = GAMES[check_game(game)].returns(check_mode(mode))
    return (np.asarray(returns, dtype=np.float64) - low) / (high - low)


@dataclass(frozen=True)
class Levels:
    """The level seeds `start` to `start + count - 1`."""

    start: int
    count: int

    def __post_init__(self) -> None:
        for name, low in (("start", 0), ("count", 1)):
            value = whole(f"levels: {name}", getattr(self, name), low=low)
            object.__setattr__(self, name, value)
        if self.start + self.count > 2**31 - 1:
            raise ValueError(
                f"levels need start + count < 2**31, got start={self.start} and count={self.count}"
            )

    def __contains__(self, level: int) -> bool:
        return self.start <= level < self.start + self.count


TRAIN_LEVELS = Levels(0, 200)
"""Training and validation (Cobbe et al. 2020, easy mode)."""
TEST_LEVELS = Levels(1_000, 2**31 - 1 - 1_000)
"""Never trained on: the hard mode's 500 training levels lie below it as well."""
