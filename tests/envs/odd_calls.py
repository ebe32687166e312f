"""A thousand odd arguments and actions for the simulator, in a process that they might end.

Prints a line before each call, so that the last one is known, and "done" at the end.
"""

import copy
import decimal
import fractions
import itertools
import pickle
import sys
import traceback
from pathlib import Path

import numpy as np
import torch

import envs
from envs import Levels, ProcgenSimulator, ProcgenVecEnv, ProcgenVectorEnv, normalized_return

OURS = Path(envs.__file__).parent
COUNT = 3
"""Environments of a simulator."""
NUMBERS = [
    -(2**63), -7, -2, -1, 0, 1, 2, 3, 14, 15, 40, 5_000, 2**31 - 2, 2**31, 2**40, 10**30, 0.0, 1.0,
    1.5, -0.5, 1e300, float("nan"), float("inf"), True, False, 1j, fractions.Fraction(3),
    decimal.Decimal(2), np.int64(3), np.int8(-3), np.uint64(2**63), np.uint8(2), np.float32(2.0),
    np.bool_(True), np.array(2), np.array([2]), torch.tensor(2),
    np.timedelta64(3, "s"),
]  # fmt: skip
THINGS = [
    None, "", "easy", "maze", b"maze", "3", [], [1], (1, 2), {}, {"seed": 1}, {1, 2}, range(3),
    object(), int, len, Ellipsis, Levels(0, 5), np.zeros((0, 3)), np.array("a"),
    "\0", "bossfight\n",
]  # fmt: skip
ODD = NUMBERS + THINGS
ARRAYS = [
    np.zeros(COUNT, kind) for kind in (*"?bBhHiIlLqQefdgFDSUO", "M8[s]", "m8[s]")
] + [
    [0, 1], [0, 1, 2], [0, 1, 15], [0, -1, 1], [0, 1.0, 2], [0, None, 1], [[0], [1], [2]],
    [[0], [1, 2], 3], ["0", "1", "2"], (14, 14, 14), np.full(COUNT, -2), np.full(COUNT, 2**40),
    np.full(COUNT, np.nan), np.arange(COUNT)[::-1], np.arange(COUNT, dtype=">i8"),
    np.array([0, 0, 2**63], dtype=np.uint64), np.ma.masked_array([1, 2, 3], [0, 1, 0]),
    torch.arange(COUNT), torch.ones(COUNT), torch.full((COUNT,), -1), iter([0, 1, 2]), {0: 1},
    np.zeros(COUNT, [("action", int)]), np.matrix([0, 1, 2]), [True] * COUNT, [10**30, 0, 0],
]  # fmt: skip


class Calls:
    """Makes the calls and judges what they do."""

    def __init__(self, seed):
        self.draw = np.random.default_rng(seed)
        self.made = self.refused = 0
        self.simulator = ProcgenSimulator("maze", COUNT)
        others = [("heist", "easy", 2), ("maze", "hard", 2), ("maze", "easy", 3)]
        self.states = [self.simulator.get_state()]
        for game, mode, depth in others:
            other = ProcgenSimulator(game, COUNT, mode=mode, frame_stack=depth)
            self.states.append(other.get_state())
            other.close()

    def one_of(self, values):
        return values[self.draw.integers(len(values))]

    def __call__(self, name, call, *arguments, allowed=None, **options):
        """What a call returns, or None where it is refused: by us, as the caller's mistake.

        allowed: whether it should be made, where that is known.
        """
        self.made += 1
        print(self.made, name, *(repr(each)[:80] for each in (arguments, options)), flush=True)
        try:
            result = call(*arguments, **options)
        except (ValueError, TypeError) as error:
            where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            if where.parent != OURS:
                raise RuntimeError(f"this error comes from {where}") from error
            if allowed:
                raise RuntimeError("this call is right") from error
            self.refused += 1
            return None
        assert allowed is not False, f"{name} took {arguments} {options}"
        return result

    def options(self):
        """A simulator with one or two odd options."""
        names = ["game", "num_envs", "levels", "mode", "frame_stack", "seed", "num_threads",
                 "high_resolution"]  # fmt: skip
        odd = {name: self.one_of(ODD) for name in self.draw.choice(names, self.one_of([1, 1, 2]))}
        whole = {"num_envs": 1, "frame_stack": 1, "seed": 0, "num_threads": 0}
        wrong = any(not is_whole(odd[name], low) for name, low in whole.items() if name in odd)
        asked = {"game": "maze", "num_envs": 2} | odd
        made = self("ProcgenSimulator", ProcgenSimulator, asked.pop("game"), asked.pop("num_envs"),
                    allowed=False if wrong else None, **asked)  # fmt: skip
        if made is not None:
            made.step(np.full(made.num_envs, 1))
            made.close()

    def levels(self):
        start, count = self.one_of(ODD), self.one_of(ODD)
        allowed = is_whole(start, 0) and is_whole(count, 1) and int(start) + int(count) < 2**31
        self("Levels", Levels, start, count, allowed=allowed)

    def actions(self):
        given = self.one_of(ARRAYS + THINGS)
        views = [self.simulator, ProcgenVectorEnv(self.simulator), ProcgenVecEnv(self.simulator)]
        self("step", self.one_of(views).step, given, allowed=are_actions(given))

    def seeds(self):
        given = self.one_of(ODD)
        allowed = given is None or is_whole(given, 0)
        vector, vec_env = ProcgenVectorEnv(self.simulator), ProcgenVecEnv(self.simulator)
        number = self.draw.integers(4)
        if number == 0:
            self("reset", self.simulator.reset, given, allowed=allowed)
        elif number == 1:
            self("VectorEnv.reset", vector.reset, seed=given, allowed=allowed)
        elif number == 2:
            self("VecEnv.seed", vec_env.seed, given, allowed=allowed)
        else:
            options = self.one_of([given, {"reset_mask": given}, {"options": given}])
            self("options", vector.reset, options=options, allowed=not_options(options))
            self("set_options", vec_env.set_options, options)

    def states_(self):
        source, slot = self.draw.integers(len(self.states)), self.draw.integers(COUNT)
        states = list(self.states[source])
        state, first, damage = states[slot], None, self.draw.integers(8)
        allowed = None if source == 0 else False
        if damage == 0:
            states[slot], allowed = self.one_of(ODD), False
        elif damage == 1:
            name = self.one_of(state._fields)
            states[slot] = state._replace(**{name: self.one_of(ODD + ARRAYS)})
        elif damage == 2:
            states[slot], allowed = self.damaged(state), False
        elif damage == 3:
            states, allowed = self.one_of(ODD), None
        elif damage == 4:
            states = states[: self.draw.integers(COUNT + 1)] * self.draw.integers(1, 4)
            allowed = None if len(states) in (0, COUNT) else False
        elif damage == 5:
            first = self.one_of(ODD)
        elif source == 0:
            allowed = True
        self("set_state", self.simulator.set_state, states, first, allowed=allowed)

    def damaged(self, state):
        data, at = state.simulator, int(self.draw.integers(1, len(state.simulator)))
        changed = bytearray(data)
        changed[at] ^= int(self.draw.integers(1, 256))
        others = [bytes(changed), data[:at], data + b"\0", data[at:], bytes(len(data)),
                  data.replace(b"maze", b"mazy")]  # fmt: skip
        return state._replace(simulator=self.one_of(others))

    def pictures(self):
        vector, vec_env = ProcgenVectorEnv(self.simulator), ProcgenVecEnv(self.simulator)
        self("render", vector.render, allowed=False)
        self("VecEnv.render", vec_env.render, "human", allowed=False)
        self("frames", self.simulator.frames, allowed=False)
        self("info", self.simulator.info, self.one_of(ODD), allowed=False)
        self("normalized_return", normalized_return, 1.0, self.one_of(THINGS), mode="easy")
        self("normalized_return", normalized_return, 1.0, "maze", mode=self.one_of(ODD))

    def copies(self):
        make = self.one_of([copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
        other = self("copy", make, self.simulator)
        self.one_of([self.simulator, other]).close()
        closed = self.simulator if self.simulator._env is None else other
        uses = [closed.get_state, closed.reset, lambda: closed.step([0] * COUNT),
                lambda: closed.set_state(self.states[0]), lambda: closed.info("level_seed"),
                lambda: make(closed).step([0] * COUNT)]  # fmt: skip
        self("closed", self.one_of(uses), allowed=False)
        self.simulator.reset(3)
        other.close()


def is_whole(value, low):
    integer = isinstance(value, int | np.integer)
    integer &= not isinstance(value, bool | np.timedelta64)
    return bool(integer and value >= low)


def are_actions(given):
    try:
        array = np.asarray(given)
    except ValueError:
        return False
    return (
        array.shape == (COUNT,)
        and array.dtype.kind in "iu"
        and all(0 <= int(each) < 15 for each in array)
    )


def not_options(options):
    return None if isinstance(options, np.ndarray | torch.Tensor) else not options


def main(count, seed):
    calls = Calls(seed)
    kinds = [calls.options, calls.levels, calls.actions, calls.actions, calls.seeds, calls.states_,
             calls.states_, calls.pictures, calls.copies]  # fmt: skip
    for make in itertools.cycle(kinds):
        make()
        if calls.made >= count:
            break
    calls.simulator.step([0] * COUNT)
    print(f"done: {calls.refused} of {calls.made} refused")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
