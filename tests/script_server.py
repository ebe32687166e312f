"""Runs scripts in forked processes: each is a process of its own, without the seconds of imports.

    python tests/script_server.py

A request is a line of JSON on standard input: `command` (a script and its arguments), `threads`
(torch's) and `file_limit` (the largest file in bytes that it may write, or null). The answers are
two lines of JSON: the process id, and [exit status, standard output, standard error].
"""

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import sys
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent


def load_what_scripts_load() -> None:
    sys.path.insert(0, str(ROOT))
    for script in (ROOT / "scripts").glob("[!_]*.py"):
        importlib.import_module(f"scripts.{script.stem}")
    for module in (
        "torch.utils.tensorboard", "torch._dynamo", "matplotlib.figure",
        "matplotlib.backends.backend_agg", "sklearn.datasets",
    ):  # fmt: skip  # what scripts load late
        importlib.import_module(module)
    # agents that have learnt nothing differ so much that a search would ask hundreds of children
    importlib.import_module("evo_subnets.trust_region").ERROR = 1.0
    simulators = importlib.import_module("envs.procgen")
    simulators.ProcgenSimulator("bigfish", 1).close()  # pictures: two seconds, once a process


def become(command: list[str], threads: int, file_limit: int | None) -> None:
    """The script, in this process, which ends with it.

    It ends as a process does that Python runs, but for the half second of taking the loaded
    modules apart.
    """
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_limit is not None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, hard))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing raises OSError
    sys.argv = command
    sys.path[0] = str(ROOT / Path(command[0]).parent)
    status: object = 0
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def read(*streams: int) -> list[str]:
    """What comes out of all streams until they end."""
    texts = dict.fromkeys(streams, b"")
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                texts[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
    return [text.decode() for text in texts.values()]


def serve() -> None:
    load_what_scripts_load()
    gc.freeze()
    while line := sys.stdin.readline():
        pipes = [os.pipe(), os.pipe()]
        child = os.fork()
        if child == 0:
            for stream, (reading, writing) in enumerate(pipes, 1):
                os.dup2(writing, stream)
                os.close(reading)
                os.close(writing)
            become(**json.loads(line))
        print(json.dumps(child), flush=True)
        for _, writing in pipes:
            os.close(writing)
        texts = read(*(reading for reading, _ in pipes))
        for reading, _ in pipes:
            os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, *texts]), flush=True)


if __name__ == "__main__":
    serve()
