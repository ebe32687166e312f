"""Levels that are the same for every policy, and the episodes played on them."""

from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt

from envs.games import Levels, Mode, check_game, check_mode, whole
from envs.procgen import ProcgenSimulator
from envs.states import SlotState
from evo_subnets.streams import check_seed, derive_seed

GROUP = 32
"""Environments whose observations a policy sees together, at most: whatever else is played at the
same time, and by how many threads, it gets the same batches, and so the same bits."""


@dataclass(frozen=True)
class Group:
    """Environments on their first levels, and what is played there."""

    states: list[SlotState]
    quota: npt.NDArray[np.int64]
    """(environments,) episodes of each."""
    seed: tuple[int, int]
    """Of the uniform numbers that choose actions."""


@dataclass(frozen=True)
class Course:
    """Levels to play: two policies on the same course face the same ones, episode by episode."""

    game: str
    levels: Levels
    _: KW_ONLY
    seed: int
    mode: Mode = "easy"
    frame_stack: int = 2
    num_envs: int = 64
    """Environments at most; they are played in groups."""

    def __post_init__(self) -> None:
        check_game(self.game)
        check_mode(self.mode)
        if not isinstance(self.levels, Levels):
            raise ValueError(f"levels must be Levels(start, count), got {self.levels!r}")
        object.__setattr__(self, "seed", check_seed(self.seed))
        for name, low in (("frame_stack", 1), ("num_envs", 1)):
            object.__setattr__(self, name, whole(name, getattr(self, name), low=low))

    def simulators(self, episodes: int) -> list[ProcgenSimulator]:
        """The groups of environments for so many episodes, on their first levels."""
        num_envs = min(self.num_envs, episodes)
        group = min(GROUP, -(-num_envs // 2))  # two groups at least: two threads, if there are
        sizes = [min(group, num_envs - start) for start in range(0, num_envs, group)]
        return [self.simulator(size, index) for index, size in enumerate(sizes)]

    def simulator(self, num_envs: int, group: int = 0) -> ProcgenSimulator:
        """One group of environments."""
        seed = derive_seed(self.seed, group) % 2**31
        return ProcgenSimulator(
            self.game,
            num_envs,
            levels=self.levels,
            mode=self.mode,
            frame_stack=self.frame_stack,
            seed=seed,
        )

    def groups(self, episodes: int) -> list[Group]:
        """The same groups as states, for any slots of any simulator of the game, with quotas.

        Every environment plays a fixed quota: counting the first episodes to finish would favour
        short ones.
        """
        episodes = whole("episodes", episodes, low=1)
        simulators = self.simulators(episodes)
        slots = sum(simulator.num_envs for simulator in simulators)
        quota = episodes // slots + (np.arange(slots) < episodes % slots)
        bounds = np.cumsum([simulator.num_envs for simulator in simulators])[:-1]
        groups = []
        for index, part in enumerate(np.split(quota, bounds)):
            groups.append(Group(simulators[index].get_state(), part, (self.seed, index)))
            simulators[index].close()
        return groups


@dataclass(frozen=True)
class Episodes:
    """Finished episodes, in an order that is the same for every policy: (episodes,) each."""

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    level_seeds: npt.NDArray[np.int64]

    @classmethod
    def none_yet(cls, count: int) -> "Episodes":
        """Room for so many."""
        numbers = np.zeros((2, count), dtype=np.int64)
        return cls(np.zeros(count), numbers[0], numbers[1])

    @classmethod
    def from_lists(cls, lists: dict[str, list[float]]) -> "Episodes":
        """Those that `as_lists` was called of."""
        levels, lengths = (np.array(lists[name], np.int64) for name in ("level_seeds", "lengths"))
        return cls(np.array(lists["returns"], np.float64), lengths, levels)

    def as_lists(self) -> dict[str, list[float]]:
        """As JSON, for a journal."""
        return {name: column.tolist() for name, column in vars(self).items()}

    @classmethod
    def joined(cls, parts: "list[Episodes]") -> "Episodes":
        """Those of several groups, one after the other."""
        return cls(
            np.concatenate([part.returns for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.level_seeds for part in parts]),
        )
