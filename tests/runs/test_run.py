"""What a run was asked, has found, shows and leaves behind."""

import copy
import errno
import gc
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evo_subnets.files import StorageError, read_json
from evo_subnets.runs import Run, lock

ASKED = {"sigma": 0.1, "env": "bigfish"}


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def opened(folder, options=ASKED, what="test", **arguments):
    run = Run(folder, **arguments)
    run.ask(what, options)
    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def scalars(folder, tag):
    """[(step, value)] of all events of a folder."""
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def forked(work):
    """A process that does work(tell), and where to read what it tells."""
    words, mouth = os.pipe()
    if process := os.fork():
        os.close(mouth)
        return process, words
    try:
        work(lambda word: os.write(mouth, word))
    finally:
        os._exit(1)


def kill(process, words):
    """Ends the process at once; what it told that was not read yet."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with open(words, "rb") as told:
        return told.read()


# --- asking


def test_nothing_is_touched_before_the_first_question(tmp_path):
    folder = tmp_path / "runs" / "mine"
    run = Run(folder, overwrite=True, outputs=["results.csv"])
    assert run.folder == folder
    assert run.checkpoint("child") == folder / "training" / "child.safetensors"
    run.part("a").close()
    run.close()
    for early in (
        lambda: run.once("a", int),
        lambda: run.record("a", "b", 1),
        lambda: run.scalar("a", 1.0, 0),
        lambda: run.finished,
        lambda: run.finish({}),
    ):
        with pytest.raises(ValueError, match=r"run\.ask\(what, options\) comes first"):
            early()
    with pytest.raises(ValueError, match=r"an option of test: a object cannot be kept"):
        run.ask("test", {"sigma": object()})
    assert not names(tmp_path)


@pytest.mark.parametrize("folder", ["", ".", Path(), Path("")])
def test_the_current_folder_is_no_folder_for_a_run(folder):
    with pytest.raises(ValueError, match="needs a folder of its own"):
        Run(folder)


def test_what_was_found_is_found_again_and_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"sigma": 0.1, "trials": ((1, 2.5), (2, float("inf"))), "flag": True, "n": 8}

    with opened(tmp_path / "run") as run:
        first = run.once("region", compute)
    assert repr(first) == "{'sigma': 0.1, 'trials': [[1, 2.5], [2, inf]], 'flag': True, 'n': 8}"
    with opened(tmp_path / "run") as run:
        assert repr(run.once("region", compute)) == repr(first)
    assert calls == [1]
    assert repr(Run.none().once("region", compute)) == repr(first), "the same where nothing is kept"


def test_records_come_back_bit_by_bit_and_stay_as_they_are(tmp_path):
    values = [1 / 3, math.inf, -math.inf, math.nan, -0.0, 1e-300, True, 8, "8", None, [1, "a"]]
    with opened(tmp_path / "run") as run:
        for index, value in enumerate(values):
            run.record("children", f"child {index}", {"fitness": value})
        run.record("children", "child 0", "another")
    with opened(tmp_path / "run") as run:
        found = run.records("children")
        assert repr(list(found.values())) == repr([{"fitness": value} for value in values])
        assert list(found) == [f"child {index}" for index in range(len(values))]
        assert run.records("others") == {}


def test_another_question_is_refused_and_named(tmp_path):
    folder = tmp_path / "run"
    options = {**ASKED, "pruning": {"sparsity": 0.5, "parts": [1, 2]}, "steps": 8, "flag": True}
    with opened(folder, options) as run:
        run.once("sigma", lambda: 1)
    before = (folder / "journal.json").read_bytes()
    for changed, message in [
        ({"sigma": 0.2}, r"holds a run with sigma 0\.1 \(now 0\.2\): use another --out, or --over"),
        ({"pruning": {"sparsity": 0.8, "parts": [1, 2]}}, r"pruning\.sparsity 0\.5 \(now 0\.8\)"),
        ({"pruning": {"sparsity": 0.5, "parts": [1]}}, r"pruning\.parts \[1, 2\] \(now \[1\]\)"),
        ({"density": math.nan}, r"density absent \(now nan\)"),
        ({"steps": "8"}, r"steps 8 \(now '8'\)"),
        ({"flag": 1}, r"flag True \(now 1\)"),
        ({"flag": False, "env": None}, r"env 'bigfish' \(now None\), flag True \(now False\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            opened(folder, {**options, **changed})
    with pytest.raises(ValueError, match="holds a run of test, this one is of others"):
        opened(folder, options, what="others")
    assert (folder / "journal.json").read_bytes() == before
    assert names(folder) == ["journal.json"], "no lock is left"
    with pytest.raises(ValueError, match="sigma") as kept:
        opened(folder, {})
    with opened(folder, {**options, "steps": 8.0}) as run:  # while that error is kept
        assert "sigma" in str(kept.value)
        assert run.once("sigma", lambda: 2) == 1


def test_a_run_asks_several_things(tmp_path):
    folder = tmp_path / "run"
    with opened(folder) as run:
        run.ask("evolve", {"seed": math.nan})
        run.ask("evolve", {"seed": math.nan})
        with pytest.raises(ValueError, match=r"seed nan \(now 1\)"):
            run.ask("evolve", {"seed": 1})
    with opened(folder) as run:
        with pytest.raises(ValueError, match=r"seed nan \(now 1\)"):
            run.ask("evolve", {"seed": 1})


def test_overwrite_removes_what_an_earlier_run_left_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    with opened(folder) as run:
        run.once("sigma", lambda: 1)
        for part in (run, run.part("a")):
            part.scalar("x", 1.0, 0)
            part.ask("part", {})
            part.finish({})
    for name in ("parent/model", "ensemble.safetensors", "diary.txt", "training/a", "a/diary.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    outputs = ["parent", "ensemble.safetensors", "missing"]
    needed = os.path.relpath(folder / "parent" / "model")
    again = {"overwrite": True, "outputs": outputs}
    with opened(folder, {"sigma": 2}, **again, needed=needed) as run:
        assert run.once("sigma", lambda: 2) == 2
        assert (folder / "parent" / "model").exists(), "what this run is to begin with"
    assert names(folder) == ["a", "diary.txt", "journal.json", "parent"]
    assert names(folder / "a") == ["diary.txt"]
    run.ask("test", {"sigma": 2})  # the same run opened again does not overwrite itself
    assert run.once("sigma", lambda: 3) == 2
    run.close()
    opened(folder, {"sigma": 3}, **again).close()
    assert names(folder) == ["a", "diary.txt", "journal.json"]


def test_a_damaged_journal_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    opened(folder).close()
    path = folder / "journal.json"
    whole = path.read_text()
    assert "0.1" in whole
    for text in (whole[:-9], whole.replace("0.1", "0.2"), "[1]", "{}", ""):
        path.write_text(text)
        with pytest.raises(StorageError, match=r"journal\.json.*--overwrite starts afresh in "):
            opened(folder)
        assert path.read_text() == text
    opened(folder, overwrite=True).close()
    opened(folder).close()


def test_a_journal_of_before_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "journal.json").write_bytes((Path(__file__).parent / "before.json").read_bytes())
    with pytest.raises(
        StorageError, match=r"^.*journal\.json is of an earlier version .*--over.*$"
    ):
        opened(folder)
    opened(folder, overwrite=True).close()


# --- results


def test_results_are_typed_and_say_where_they_come_from(tmp_path):
    folder = tmp_path / "run"
    with opened(folder) as run:
        assert run.finished is None
        training = run.checkpoint("child")
        training.parent.mkdir()
        training.write_text("x")
        run.finish({"steps": 8, "flag": True, "mean": 0.5, "lost": math.nan, "best": math.inf})
        with pytest.raises(ValueError, match="provenance"):
            run.finish({"provenance": 1})
    results = json.loads((folder / "results.json").read_text())
    assert results["steps"] == 8
    assert results["flag"] is True
    assert results["lost"] is results["best"] is None
    assert {"commit", "dirty", "command", "started", "finished", "versions", "hardware"} < set(
        results["provenance"]
    )
    assert names(folder) == ["journal.json", "results.json"]
    with opened(folder) as run:
        assert run.finished == read_json(folder / "results.json")
        run.ask("more", {})
        assert run.finished is None, "it was not asked all that"
        assert not (folder / "results.json").exists()
        run.finish({})
    assert len(read_json(folder / "results.json")["provenance"]["resumed"]) == 1
    with opened(folder) as run:
        assert run.finished is not None
        run.part("a").ask("test", {})
        assert run.finished is None, "nor was a part"


def test_there_are_no_results_until_a_run_is_whole(tmp_path):
    folder = tmp_path / "run"
    opened(folder).close()
    (folder / "results.json").write_text("of a run that was killed before the journal knew of it")
    with opened(folder) as run:
        assert run.finished is None
        assert not (folder / "results.json").exists()


def test_results_of_another_make_are_not_removed_without_a_word(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(ValueError, match=r"holds results\.json and no journal\.json"):
        opened(tmp_path)
    assert names(tmp_path) == ["results.json"]


def test_parts_have_results_of_their_own_and_share_the_journal(tmp_path):
    folder = tmp_path / "run"

    def both(value):
        with opened(folder) as run:
            one, other = run.part("lines/one"), run.part("lines").part("other")
            one.ask("line", {"seed": 0})
            found = [part.once("value", lambda: value) for part in (run, one, other)]
            states = [one.finished, other.finished, run.finished]
            if value == 1:
                for part in (one, other):
                    path = part.checkpoint("child")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
                    assert path.is_relative_to(folder / "training" / "lines")
                one.finish({"value": value})
                assert not one.checkpoint("child").exists()
                assert other.checkpoint("child").exists()
            with pytest.raises(ValueError, match=r"seed 0 \(now 1\)"):
                one.ask("line", {"seed": 1})
        return found, states

    assert both(1) == ([1, 1, 1], [None, None, None])
    found, (one, other, whole) = both(2)
    assert found == [1, 1, 1]
    assert (one["value"], other, whole) == (1, None, None)
    assert names(folder) == ["journal.json", "lines", "training"]
    assert names(folder / "lines") == ["one"]
    for name in ("", "..", "a/../..", "/a"):
        with pytest.raises(ValueError, match="expected a name"):
            Run(folder).part(name)


# --- events


def test_a_run_that_goes_on_tells_its_story_from_the_beginning(tmp_path):
    folder = tmp_path / "run"
    foreign = folder / "events.out.tfevents.of-something-else"
    with opened(folder) as run:
        foreign.touch()
        for part in (run, run.part("a")):
            part.scalar("x", 1.0, 0)
            part.scalar("x", 2.0, 1)
            part.hyper_parameters({"sigma": 0.1, "path": folder}, {"mean": 1.0})
    before = names(folder)
    for options in (ASKED, {"sigma": 0.2}):  # one that goes on without a word, one that is refused
        try:
            opened(folder, options).close()
        except ValueError:
            assert options != ASKED
        assert names(folder) == before, "old events go when new ones come"
    with opened(folder) as run:
        for part in (run, run.part("a")):
            part.histogram("h", [])
            part.text("t", "**t**")
            part.histogram("h", [1, 2])
        run.scalar("x", 3.0, 0)
        inside = run.part("a")
        inside.scalar("x", 5.0, 0)
        inside.close()
        run.part("a").scalar("x", 6.0, 1)  # the same story
    assert scalars(folder, "x") == [(0, 3.0)]
    assert scalars(folder / "a", "x") == [(0, 5.0), (1, 6.0)]
    assert foreign.exists()


def test_files_of_one_second_are_read_in_the_order_in_which_they_were_made(tmp_path):
    with opened(tmp_path / "run") as run:
        for step in range(12):  # by name, numbers with one more digit come before the others
            part = run.part("a")
            part.scalar("x", float(step), step)
            part.close()
    assert scalars(tmp_path / "run" / "a", "x") == [(step, float(step)) for step in range(12)]


def test_without_tensorboard_and_tqdm_a_run_keeps_all_the_same(tmp_path, monkeypatch, recwarn):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with opened(tmp_path / "run") as run:
        with pytest.warns(RuntimeWarning, match=r"^no events: tensorboard is not installed \(pip"):
            run.scalar("x", 1.0, 0)
        run.scalar("x", 2.0, 1)
        run.text("x", "x")
        with pytest.warns(RuntimeWarning, match="^no progress bars: tqdm is not installed"):
            with run.bar("children", 2) as advance:
                advance(1, "note")
        run.record("a", "b", 1)
        assert run.records("a") == {"b": 1}
    assert not recwarn.list
    assert names(tmp_path / "run") == ["journal.json"]


# --- nothing is kept


def test_a_run_that_keeps_nothing_shows_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run.none()
    for one in (run, run.part("a")):
        with one:
            one.ask("test", ASKED)
            assert one.once("a", lambda: (1,)) == [1]
            one.record("a", "b", 1)
            one.scalar("x", 1.0, 0)
            one.histogram("x", [1.0])
            one.text("x", "x")
            one.hyper_parameters({}, {})
            one.finish({"a": 1})
            with one.bar("children", 3) as advance:
                advance(1, "note")
            assert (one.folder, one.finished, one.checkpoint("a")) == (None, None, None)
            assert one.records("a") == {}
    assert capfd.readouterr() == ("", "")
    assert not names(tmp_path)


def test_bars_are_on_standard_error(tmp_path, capfd):
    with Run(tmp_path).bar("children", 3) as advance:
        advance(1)
        advance(2, "return 5.00")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "children" in shown.err
    assert "3/3" in shown.err
    assert "return 5.00" in shown.err


def test_copies_keep_and_show_nothing(tmp_path, capfd):
    with opened(tmp_path / "run") as run, run.bar("children", 3) as advance:
        capfd.readouterr()
        for one in (run, run.part("a")):
            for twin in (pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one)):
                assert twin.folder is None
                twin.record("a", "b", 1)
        pickle.loads(pickle.dumps(advance))(1, "note")
        assert capfd.readouterr().err == ""
        assert run.records("a") == {}


@forks
def test_a_forked_process_keeps_nothing_and_unlocks_nothing(tmp_path):
    folder = tmp_path / "run"
    run = opened(folder)
    run.scalar("x", 1.0, 0)
    if (child := os.fork()) == 0:
        run.ask("other", {})
        run.record("a", "b", 1)
        run.scalar("x", 2.0, 1)
        run.finish({"a": 1})
        run.close()
        found = run.once("c", lambda: 5)
        run.__dict__.clear()
        gc.collect()
        os._exit(0 if found == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert "lock" in names(folder)
    with pytest.raises(ValueError, match="in use"):
        opened(folder)
    assert run.records("a") == {}
    run.close()
    with opened(folder) as again:
        assert again.records("a") == {}
        assert again.finished is None
    assert scalars(folder, "x") == [(0, 1.0)]


# --- locks

HOLD = """
import sys
from evo_subnets.runs import Run
run = Run(sys.argv[1])
run.ask("test", {"sigma": 0.1, "env": "bigfish"})
run.scalar("x", 1.0, 0)
print("open", flush=True)
sys.stdin.read()
"""


def hold(folder):
    """Another process whose run has the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"open\n"
    return process


def test_a_folder_has_one_run_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with hold(folder) as process:
        before = names(folder)
        for overwrite in (False, True):
            with pytest.raises(
                ValueError, match=rf"^{folder} is in use by process {process.pid} since 2.*: wait"
            ):
                opened(folder, overwrite=overwrite)
        assert names(folder) == before
        process.stdin.close()
        assert process.wait() == 0
    assert [name for name in names(folder) if "tfevents" not in name] == ["journal.json"]
    opened(folder).close()


@forks
def test_a_killed_process_leaves_no_lock(tmp_path):
    folder = tmp_path / "run"

    def work(tell):
        with opened(folder):
            tell(b"open")
            time.sleep(60)

    process, words = forked(work)
    assert os.read(words, 4) == b"open"
    with pytest.raises(ValueError, match=f"in use by process {process}"):
        opened(folder)
    kill(process, words)
    assert names(folder) == ["journal.json", "lock"]
    (folder / ".results.json.0a1b2c3d").touch()  # as a kill amidst a write leaves it
    (folder / ".mine").touch()
    opened(folder).close()
    assert names(folder) == [".mine", "journal.json"]


@forks
def test_a_child_of_a_killed_process_holds_no_lock(tmp_path):
    """As a data loader's workers, which outlive it for a while."""
    folder = tmp_path / "run"

    def work(tell):
        with opened(folder):
            child, _ = forked(lambda _: time.sleep(60))
            tell(b"%d" % child)
            time.sleep(60)

    process, words = forked(work)
    child = int(os.read(words, 20))
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        opened(folder).close()
        os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(words)


def test_this_process_is_told_of_its_own_run(tmp_path):
    run = opened(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "link"):
        with pytest.raises(ValueError, match=rf"in use by process {os.getpid()}, this one, since"):
            opened(folder)
    part = run.part("a")
    del run
    gc.collect()
    with pytest.raises(ValueError, match="in use"):
        opened(tmp_path / "run")  # a part is still there
    del part
    gc.collect()
    opened(tmp_path / "run").close()


@pytest.mark.skipif(sys.platform == "win32", reason="no open file is removed there")
def test_the_file_that_is_locked_is_the_one_that_is_there(tmp_path, monkeypatch):
    """Its last holder may remove it between our opening and our locking it."""
    opening, times = lock._locked, []

    def removed_before(descriptor, folder):
        if not times:
            (folder / "lock").unlink()
        times.append(descriptor)
        return opening(descriptor, folder)

    monkeypatch.setattr(lock, "_locked", removed_before)
    run = opened(tmp_path)
    assert len(times) == 2
    assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    monkeypatch.undo()
    with (tmp_path / "lock").open("r+b") as file:
        assert not lock._locked(file.fileno(), tmp_path)
    run.close()
    assert names(tmp_path) == ["journal.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl's errors")
def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.warns(RuntimeWarning, match=r"cannot be locked here .*take care that no other run"):
        run = opened(tmp_path)
    with pytest.raises(ValueError, match="in use by process"):
        opened(tmp_path)  # this process knows of its own
    run.close()
    assert names(tmp_path) == ["journal.json"]


def test_one_of_many_gets_the_folder(tmp_path):
    """Over and over, while others leave it."""
    holders, most, failures = [0], [0], []
    guard = threading.Lock()

    def take():
        for _ in range(60):
            try:
                run = opened(tmp_path / "run")
            except ValueError as error:
                if "in use" not in str(error):
                    failures.append(error)
                continue
            with guard:
                holders[0] += 1
                most[0] = max(most[0], holders[0])
            with guard:
                holders[0] -= 1
            run.close()

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert most == [1]
    assert names(tmp_path / "run") == ["journal.json"]


# --- kills and errors


@forks
def test_kills_at_any_moment_leave_a_whole_journal(tmp_path):
    """A child that was told of is kept; each process goes on where the last one was killed."""
    folder, moments, kept = tmp_path / "run", random.Random(5), 0

    def work(tell):
        with opened(folder) as run:
            for index in range(10**6):
                run.record("children", str(index), {"fitness": index})
                tell(b"%d\n" % index)

    for _ in range(30):
        process, words = forked(work)
        time.sleep(moments.uniform(0, 0.1))
        told = [int(line) for line in kill(process, words).splitlines()]
        with opened(folder) as run:
            found = run.records("children")
        assert found == {str(index): {"fitness": index} for index in range(len(found))}
        assert len(found) >= kept
        assert not told or len(found) > told[-1]
        kept = len(found)
        assert names(folder) == ["journal.json"], "nothing half-written, no lock"
    assert kept > 1


def test_errors_of_the_file_system_name_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file: expected a folder"):
        Run(tmp_path / "file")
    with pytest.raises(OSError, match=r"^\[Errno \d+\] [^\n]*file/run'$"):
        opened(tmp_path / "file" / "run")
    with opened(tmp_path / "run") as run:
        folder = tmp_path / "run" / "results.json"
        folder.mkdir()
        with pytest.raises(OSError, match=r"^\[Errno \d+\] [^\n]*results\.json'$"):
            run.finish({"a": 1})
        assert run.finished is None


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "run"
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '.*/run/lock'$"):
        opened(folder)
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/journal\.json'$"):
        opened(folder)
    monkeypatch.undo()
    assert not names(folder)
    opened(folder).close()
