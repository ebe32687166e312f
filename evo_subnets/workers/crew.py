"""Work on many items in processes of EvoTorch's on Ray: on this machine, or on a cluster."""

import hashlib
import logging
import os
import pickle
import random
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import evotorch
import ray
import torch
from ray import cloudpickle
from ray.util import ActorPool

from evo_subnets.workers.here import no_result

if "EVOTORCH_VERBOSE_LEVEL" not in os.environ:  # else every Problem introduces itself in five lines
    logging.getLogger("evotorch").setLevel(logging.WARNING)

RETRIES = 1
"""How often Ray sends a piece again whose worker died, before we take it apart."""
PIECES_PER_WORKER = 8
LARGEST_PIECE = 16
ANSWER_SECONDS = 10.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP2_SETTINGS = 4


@dataclass(frozen=True)
class Cargo:
    """Pickled work in Ray's object store, and the SHA-256 by which its receiver knows it."""

    reference: "ray.ObjectRef[bytes]"
    digest: str

    @classmethod
    def packed(cls, work: Callable[[Any], Any]) -> "Cargo":
        """The work, put into the object store. A ValueError says why it cannot travel."""
        try:
            data = cloudpickle.dumps(work)
        except Exception as error:  # whatever the parts of the work raise
            raise ValueError(
                "this cannot be sent to other processes, make what it holds when it is called: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from None
        return cls(ray.put(data), hashlib.sha256(data).hexdigest())

    def opened(self) -> Callable[[Any], Any]:
        """The work, a copy of this process's own."""
        data = ray.get(self.reference)
        found = hashlib.sha256(data).hexdigest()
        if found != self.digest:
            raise ValueError(f"expected work with SHA-256 {self.digest[:12]}, got {found[:12]}")
        try:
            work: Callable[[Any], Any] = pickle.loads(data)
        except Exception as error:
            raise ValueError(
                f"the work cannot be opened there: {type(error).__name__}: {_first_line(error)}"
            ) from None
        return work


@dataclass(frozen=True)
class Interrupt:
    """What is no Exception, as SystemExit: it travels as a result, to be raised here."""

    kind: type[BaseException]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, error: BaseException) -> "Interrupt":
        """Of what work has raised; where that cannot travel, a KeyboardInterrupt with its words."""
        found = cls(type(error), error.args)
        try:
            again = pickle.loads(cloudpickle.dumps(found))
            again.kind(*again.arguments)
        except Exception:  # whatever its parts raise
            return cls(KeyboardInterrupt, (f"{type(error).__name__}: {error}",))
        return found


class _Own:
    """What stays in this process: clones share it, pickles leave it out."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Own":
        return self

    def __reduce__(self) -> tuple[type["_Own"], tuple[()]]:
        return _Own, ()


def piece_size(items: int, workers: int) -> int:
    """How many items go to a worker at once."""
    return min(max(items // (PIECES_PER_WORKER * workers), 1), LARGEST_PIECE)


class Crew(evotorch.Problem):  # type: ignore[misc]
    """Worker processes that do one kind of work, made of what EvoTorch calls actors.

    work: an item to its result. It travels once, and each worker opens it when first needed, so the
    pickled problem stays small, which workers that are replaced depend on. lost: an item to its
    result where every worker that took it died. workers: 0 is this process. What follows: as in
    `Ray`, which has checked them.

    Workers start with the first item and end with `close`, or with the `with` block.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        workers: int = 0,
        *,
        gpus_per_worker: float | None = None,
        address: str | None = None,
        threads: int = 1,
        lost: Callable[[Any], Any] = no_result,
        solution_length: int = 1,
    ) -> None:
        super().__init__(
            "max",
            solution_length=solution_length,
            dtype=torch.float64,
            store_solution_stats=False,  # EvoTorch's fail where a fitness is NaN
        )
        self._num_actors = workers  # set here because EvoTorch makes none where one is asked for
        self._num_gpus_per_actor = gpus_per_worker
        self._work, self._cargo = _Own(work), _Own()
        self._lost = _Own(lost)
        self._address, self._threads, self._path = address, threads, list(sys.path)
        self.remote_hook.append(_prepare)

    seed = evotorch.Problem.manual_seed  # the name by which EvoTorch's actors call it

    def results(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(index, result) of each item, as they come.

        What the work raises, this raises. A piece whose workers died is taken apart, for one item
        alone may have killed them.
        """
        if self._work.value is None:
            raise ValueError("a problem that was pickled left its work behind: make it anew")
        if not items:
            return
        self._parallelize()
        if self._actors is None:
            yield from enumerate(map(self._work.value, items))
            return
        size = piece_size(len(items), len(self._actors))
        starts = range(0, len(items), size)
        pieces = [range(start, min(start + size, len(items))) for start in starts]
        dead = yield from self._done(items, pieces)
        single = [range(index, index + 1) for piece in dead for index in piece]
        for (index,) in (yield from self._done(items, single)):
            yield index, self._lost.value(items[index])

    def _done(
        self, items: Sequence[Any], pieces: list[range]
    ) -> Generator[tuple[int, Any], None, list[range]]:
        """Yields the results of pieces; returns those whose workers died."""
        pool = self._actor_pool = ActorPool(self._actors)  # the last may have been left half-way
        missing = dict.fromkeys(pieces)
        for piece in pieces:
            pool.submit(self._send, (piece, [items[index] for index in piece]))
        while pool.has_next():
            try:
                piece, results = pool.get_next_unordered()
            except ray.exceptions.ActorDiedError as error:
                raise ChildProcessError(f"no worker can be started: {_last_line(error)}") from None
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
                continue  # its piece stays among the missing
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None
            if isinstance(results, Interrupt):
                raise results.kind(*results.arguments)
            del missing[piece]
            yield from zip(piece, results, strict=True)
        return list(missing)

    def _send(self, actor: Any, value: tuple[range, list[Any]]) -> "ray.ObjectRef[Any]":
        # not with the constructor's arguments: a worker must be able to restart without it
        reference: ray.ObjectRef[Any] = actor.call.remote(
            "work_on", [self._cargo.value, *value], {}
        )
        return reference

    def work_on(
        self, cargo: Cargo, piece: range, items: list[Any]
    ) -> "tuple[range, list[Any] | Interrupt]":
        """The piece and the results of its items; it is the workers that call it."""
        if self._work.value is None:
            self._work.value = cargo.opened()
        try:
            return piece, [self._work.value(item) for item in items]
        except Exception:
            raise
        except BaseException as error:  # would end the worker, or cancel its task
            return piece, Interrupt.of(error)

    def _parallelize(self) -> None:
        if self._actors is not None or not self.is_main or not self._num_actors:
            return
        connect(self._address)
        self._actor_config = self._options()
        self._cargo.value = Cargo.packed(self._work.value)
        with _generators_stay():  # EvoTorch draws the workers' seeds
            super()._parallelize()

    def _options(self) -> dict[str, Any]:
        """What Ray is told of each worker."""
        return {
            "max_restarts": -1,
            "max_task_retries": RETRIES,
            "num_cpus": self._claimed_cpus(),
        }

    def _claimed_cpus(self) -> int:
        """How many CPUs a worker books with Ray; a ValueError says that there are too few.

        On one machine it books none, so that more workers than cores share them.
        """
        gpus = (self._num_gpus_per_actor or 0) * self._num_actors
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cpus = 0 if self._address is None and len(nodes) == 1 else self._threads
        there = ray.cluster_resources()
        count = self._num_actors
        if cpus * count > there.get("CPU", 0) or gpus > there.get("GPU", 0):
            raise ValueError(
                f"{count} workers need {cpus * count} CPUs and {gpus:g} GPUs, "
                f"Ray has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs "
                f"on {len(nodes)} machines"
            )
        return cpus

    def close(self) -> None:
        """Ends the workers, at once. New ones start when there is work again."""
        if self._actors is not None:
            self.kill_actors()
        self._cargo.value = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prepare(crew: Crew) -> None:
    """Of a worker: it finds modules where the process that made it does."""
    sys.path += [folder for folder in crew._path if folder not in sys.path]
    torch.set_num_threads(crew._threads)


def connect(address: str | None = None) -> None:
    """Connects this process to Ray, unless it is: to a cluster, or to one started here.

    An OSError (or a ValueError for what is no address) says that no Ray answers at `address`.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        quiet["include_dashboard"] = False
    else:
        _check_answer(address)
    try:
        with _generators_stay():  # Ray draws the names of its parts
            ray.init(address, **quiet)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(f"no Ray answers at {address}: {_first_line(error)}") from None


@contextmanager
def _generators_stay() -> Iterator[None]:
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)


def _check_answer(address: str) -> None:
    """An OSError where nothing like Ray answers, for which Ray itself takes minutes to give up.

    Ray speaks gRPC, which is HTTP/2: a server greets with its settings.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", or what Ray refuses itself
    try:
        where = host.strip("[]"), int(port)
        with socket.create_connection(where, timeout=ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(HTTP2_PREFACE)
            greeting = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray answers at {address}: {error}") from None
    if len(greeting) < 9 or greeting[3] != HTTP2_SETTINGS:
        raise ConnectionError(f"no Ray answers at {address}: another kind of server does")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[-1].strip()
