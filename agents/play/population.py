"""Policies on a course, all at once: one loop for a single policy and for a thousand children."""

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from itertools import product
from queue import SimpleQueue

import torch

from agents.impala import compiled_blocks, use_compiled_blocks
from agents.play.blocks import Block, step_together
from agents.play.course import Course, Episodes
from envs.procgen import ProcgenSimulator
from evo_subnets.copies import copied
from evo_subnets.evolution import Child, check_strength, gather
from evo_subnets.mutation import Mutation, materialize
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.subnetworks import Include, parameters

OnEpisode = Callable[[float], None] | None
MakePolicy = Callable[[], EnsemblePolicy]
Seated = tuple[int, int, Block]
"""The indices of a policy and of a group, and what plays."""
BLOCKS, BLOCKS_ON_GPU = 2, 64
"""Of a simulator. A CPU gains nothing from more, and its threads would end at other times."""


def play(
    policy: EnsemblePolicy,
    course: Course,
    *,
    episodes: int,
    deterministic: bool = False,
    on_episode: OnEpisode = None,
) -> Episodes:
    """`episodes` whole episodes of a course: the same levels in the same order for every policy.

    Every environment plays a fixed quota. The k-th level of an environment depends on the course
    alone, and so do the uniform numbers that choose its actions, which makes the returns of two
    policies pairs. `on_episode` gets the return of each finished episode.
    """
    with compiled_blocks(policy.model):
        only = play_population(
            [lambda: policy],
            course,
            episodes=episodes,
            deterministic=deterministic,
            device=policy.device,
            on_episode=on_episode,
        )
        ((_, outcome),) = only
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def play_population(
    policies: Sequence[MakePolicy],
    course: Course,
    *,
    episodes: int,
    deterministic: bool = False,
    device: torch.device | str = "cpu",
    on_episode: OnEpisode = None,
    blocks: int | None = None,
) -> Generator[tuple[int, Episodes | Exception]]:
    """(index of a policy, what `play` returns for it, bit for bit), as they finish.

    `policies` make their policies, on `device`, when these begin to play, and their Impala networks
    use compiled blocks from then on; nothing keeps them longer, so memory does not grow with the
    population. One that fails gives its exception and the others play on; any other error stops
    all. Close an iterator that is not used up.

    Each thread has one simulator with `blocks` blocks of environments that step together; a block
    plays a group of a policy's environments and then takes the next one that waits. On a CPU there
    are as many threads as torch has, with one torch thread each: small batches gain little from
    more.
    """
    if blocks is not None and blocks < 1:
        raise ValueError(f"blocks must be at least 1, got {blocks}")
    match = _Match(policies, course, episodes, deterministic, on_episode, torch.device(device))
    threads = torch.get_num_threads()
    on_cpu = torch.device(device).type == "cpu"
    waiting = max(len(match.waiting), 1)
    playing = min(threads if on_cpu else 1, waiting)
    blocks = min(blocks or (BLOCKS if on_cpu else BLOCKS_ON_GPU), -(-waiting // playing))
    simulators = [course.simulator(blocks * match.size) for _ in range(playing)]
    try:  # set_num_threads is for the calling thread alone
        with ThreadPoolExecutor(playing, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for simulator in simulators:
                    pool.submit(match.run, simulator)
                yield from match.results()
            finally:  # Ctrl-C reaches this thread alone
                match.stop.set()
    finally:
        torch.set_num_threads(threads)  # for threads to come, which take the last number set
        for simulator in simulators:
            simulator.close()


def evaluate_population(
    parent: Actor,
    mutations: Sequence[Mutation],
    *,
    course: Course,
    episodes: int,
    deterministic: bool = False,
    device: torch.device | str = "cpu",
    include: Include = None,
    on_child: Callable[[Child], None] | None = None,
    done: Sequence[Child] = (),
) -> list[Child]:
    """What `evolution.evaluate` returns with the mean return of `play` as the fitness.

    Children play together, and are told and kept as there, in the order in which they finish. A
    ValueError refuses noise that leaves nothing of the parent, before any play.
    """
    space = parent.observation_space
    check_strength(parent, mutations, include=include)
    weights = parameters(parent)

    def policy(mutation: Mutation) -> EnsemblePolicy:
        model = copied(parent)
        materialize(weights, mutation, out=parameters(model), include=include)
        return EnsemblePolicy(model, space, device=device)

    def evaluated(missing: Sequence[Mutation]) -> Iterator[tuple[int, Child]]:
        policies = [partial(policy, mutation) for mutation in missing]
        playing = play_population(
            policies, course, episodes=episodes, deterministic=deterministic, device=device
        )
        ending.enter_context(closing(playing))
        for index, outcome in playing:
            yield index, _child(missing[index], outcome)

    with ExitStack() as ending:
        return gather(mutations, evaluated, on_child=on_child, done=done)


def _child(mutation: Mutation, outcome: Episodes | Exception) -> Child:
    if isinstance(outcome, Exception):
        return Child(mutation, math.nan, f"{type(outcome).__name__}: {outcome}")
    return Child.judged(mutation, outcome.returns.tolist())


class _Match:
    """What the threads of `play_population` share."""

    def __init__(
        self,
        policies: Sequence[MakePolicy],
        course: Course,
        episodes: int,
        deterministic: bool,
        on_episode: OnEpisode,
        device: torch.device,
    ) -> None:
        self.policies, self.deterministic, self.on_episode = policies, deterministic, on_episode
        self.device = device
        self.groups = course.groups(episodes)
        self.size = max(len(group.states) for group in self.groups)
        self.waiting = deque(product(range(len(policies)), range(len(self.groups))))
        self.finished: SimpleQueue[tuple[int, int, Episodes | Exception] | BaseException]
        self.finished = SimpleQueue()
        self.failed: set[int] = set()
        self.stop = threading.Event()

    def results(self) -> Iterator[tuple[int, Episodes | Exception]]:
        """Each policy's episodes when its last group is finished, or its first failure."""
        parts: dict[int, dict[int, Episodes]] = {index: {} for index in range(len(self.policies))}
        while parts:
            told = self.finished.get()
            if isinstance(told, BaseException):
                raise told
            index, group, outcome = told
            if index not in parts:
                continue
            if isinstance(outcome, Exception):
                del parts[index]
                yield index, outcome
                continue
            parts[index][group] = outcome
            if len(parts[index]) == len(self.groups):
                found = parts.pop(index)
                yield index, Episodes.joined([found[number] for number in sorted(found)])

    def run(self, simulator: ProcgenSimulator) -> None:
        """Plays what is waiting, until nothing is or `stop` is set."""
        try:
            self._play(simulator)
        except BaseException as error:  # it is raised where the results are read
            self.stop.set()
            self.finished.put(error)

    def _play(self, simulator: ProcgenSimulator) -> None:
        free = deque(range(0, simulator.num_envs - self.size + 1, self.size))
        playing: dict[int, Seated] = {}
        observation = simulator.observation
        while not self.stop.is_set():
            while free and (seated := self._next()) is not None:
                start = free.popleft()
                playing[start] = seated
                observation = simulator.set_state(seated[2].group.states, start)
                del seated  # nothing else holds on to a policy
            if not playing:
                return
            blocks = {start: block for start, (*_, block) in playing.items()}
            observation = step_together(simulator, observation, blocks=blocks)
            del blocks
            for start in [start for start, each in playing.items() if self._ended(*each)]:
                del playing[start]
                free.append(start)

    def _ended(self, index: int, group: int, block: Block) -> bool:
        if block.failure is not None:
            self._fail(index, block.failure)
        elif index in self.failed:  # in another group
            return True
        elif not block.active.size:
            self.finished.put((index, group, block.episodes))
        else:
            return False
        return True

    def _next(self) -> Seated | None:
        while self.waiting:
            try:
                index, group = self.waiting.popleft()
            except IndexError:  # another thread was faster
                break
            if index in self.failed:
                continue
            try:
                policy = self.policies[index]()
                use_compiled_blocks(policy.model)
                if policy.device.type != self.device.type:
                    raise ValueError(f"the policy is on {policy.device}, device says {self.device}")
            except Exception as error:
                self._fail(index, error)
                continue
            block = Block(
                policy,
                self.groups[group],
                deterministic=self.deterministic,
                on_episode=self.on_episode,
            )
            return index, group, block
        return None

    def _fail(self, index: int, error: Exception) -> None:
        self.failed.add(index)
        self.finished.put((index, 0, error))
