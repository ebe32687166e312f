"""The tests' side of script_server.py, and what every script's failures have in common."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
ROOT = TESTS.parent


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str


class Server:
    """The scripts as forked processes of tests/script_server.py, one after the other."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "script_server.py")],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def start(self, script, *arguments, threads=1, file_limit=None):
        """The process id. `script`: a name in scripts/, or a path as "benchmarks/winograd"."""
        path = script if "/" in script else f"scripts/{script}"
        command = [f"{path}.py", *map(str, arguments)]
        request = {"command": command, "threads": threads, "file_limit": file_limit}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.pid = self.answer(60)
        return self.pid

    def finish(self, seconds=60):
        try:
            return Result(*self.answer(seconds))
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            self.answer(10)
            raise

    def run(self, script, *arguments, **options):
        self.start(script, *arguments, **options)
        return self.finish()

    def printed(self, script, *arguments):
        """What a script prints that comes to its end."""
        result = self.run(script, *arguments)
        assert result.status == 0, result.stderr
        return result.stdout

    def answer(self, seconds):
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"no answer in {seconds} s")
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


def check_refusal(result, status, *words):
    """One line on standard error that says what is wrong, and no traceback."""
    assert result.status == status, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def check_late_failure(result, status, word, folder):
    """The same after progress bars, with no results and nothing half-written."""
    assert result.status == status, result.stderr
    assert "Traceback" not in result.stderr
    assert word in result.stderr.splitlines()[-1]
    assert not (folder / "results.json").exists()
    assert not half_written(folder)


def half_written(folder):
    return list(folder.rglob(".*"))
