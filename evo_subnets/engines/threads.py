"""Threads for work that is shared out as a whole: none of torch's own beneath them."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

Item = TypeVar("Item")
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()


def single_threads(threads: int) -> ThreadPoolExecutor:
    """So many threads, the same at every call, with one torch thread each.

    The number of torch threads stays as it is everywhere else.
    """
    key = os.getpid(), threads  # a forked process has none of its parent's threads
    with _lock:
        if key not in _pools:
            _pools[key] = _started(threads)
        return _pools[key]


def share_out(job: Callable[[Item], None], items: Iterable[Item], *, threads: int) -> None:
    """Does `job` with each item, none of which is None, on so many `single_threads`.

    A thread that is done takes the next item. What a job raises is raised here, and what nobody has
    taken by then is left.
    """
    left, taking, stop = iter(items), threading.Lock(), threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                with taking:  # the items may be a generator's
                    item = next(left, None)
                if item is None:
                    return
                job(item)
        except BaseException:
            stop.set()
            raise

    futures: list[Future[None]] = []
    try:
        futures = [single_threads(threads).submit(work) for _ in range(threads)]
        wait(futures)
    finally:  # interrupted: nothing runs on behind the caller's back
        stop.set()
        wait(futures)
    for future in futures:
        future.result()


def _started(threads: int) -> ThreadPoolExecutor:
    before: list[int] = []
    _elsewhere(lambda: before.append(torch.get_num_threads()))
    pool = ThreadPoolExecutor(threads, "member", _alone)
    together = threading.Barrier(threads)
    list(pool.map(lambda _: together.wait(), range(threads)))  # all are there, not only one
    # A thread's own number also becomes that of threads to come: here they get the former one.
    _elsewhere(lambda: torch.set_num_threads(before[0]))
    return pool


def _alone() -> None:
    torch.get_num_threads()  # a thread takes the common number when it first needs one: now
    torch.set_num_threads(1)


def _elsewhere(job: Callable[[], None]) -> None:
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
