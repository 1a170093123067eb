"""Faults of the machine that a run must survive without losing saved data or loading wrong data.

`docs/reference/robustness.md` has the table. To see what each test tried, run `python -m pytest -n
0 -rP tests/robustness/test_faults.py -m "slow or not slow"`.
"""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from experiments.adding_task.__main__ import main as adding_main
from experiments.common import metrics
from experiments.common.checkpoints import Checkpoints
from experiments.common.command import in_one_go, make_folder
from experiments.common.folder import LOCK, NotWritten, alone
from experiments.common.settings import UsageError
from experiments.copy_task.__main__ import main
from runs import FLAGS, ROOT, assert_same_run

pytestmark = pytest.mark.usefixtures("optax_promotes")

# Orbax leaves files of a damaged checkpoint open. The garbage collector closes them here.
leaves_files_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SMALL = ("--length", "8", "--hidden-size", "4", "--batch-size", "4", "--updates", "4",
         "--eval-every", "2", "--test-examples", "10", "--save-every", "0",
         "--solved", "0")  # fmt: skip


# --- damaged checkpoints


def state_of(number):
    rng = np.random.default_rng(number)
    return {"w": rng.standard_normal((5, 7)), "update": np.full(2, number, np.int32)}


def facts_of(number):
    return {"number": number, "verdicts": ["running", "solved"], "seconds": 0.1 * number}


def same_state(a, b):
    return all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in b)


def damages(path, places):
    """Return (name, damage to the file): a changed byte at every place, and a file cut there."""
    whole = path.read_bytes()
    size = len(whole)
    for place in sorted({min(size - 1, size * k // places) for k in range(places + 1)} - {-1}):
        for mask in (0x01, 0xFF):
            flipped = bytearray(whole)
            flipped[place] ^= mask
            yield "a byte changed", bytes(flipped)
        yield "cut", whole[:place]
    yield "bytes added", whole + b"\0" * 16
    yield "zeros", b"\0" * size
    yield "gone", None


def damage_all(tmp_path, places):
    """Damage every file of the newer of two checkpoints in every way, and collect the results."""
    saved = tmp_path / "saved"
    checkpoints = Checkpoints(saved / "checkpoints")
    for number in (1, 2):
        checkpoints.save(number, state_of(number), facts_of(number))
    checkpoints.close()
    names = [p.relative_to(saved) for p in (saved / "checkpoints" / "2").rglob("*") if p.is_file()]
    assert len(names) >= 5
    told = Counter()
    for name in sorted(names):
        for kind, content in damages(saved / name, places):
            out = tmp_path / "run"
            shutil.copytree(saved, out)
            if content is None:
                (out / name).unlink()
            else:
                (out / name).write_bytes(content)
            said = []
            checkpoints = Checkpoints(out / "checkpoints")
            found = checkpoints.restore(state_of(0), said.append)
            checkpoints.close()
            assert found is not None, (name, kind)
            number = found.facts["number"]
            assert found.facts == facts_of(number), (name, kind)
            assert same_state(found.state, state_of(number)), (name, kind)
            if number == 1:  # the message names the damaged checkpoint, which is kept
                assert len(said) == 1
                assert said[0].startswith("Checkpoint 2 is damaged")
                assert (out / "damaged_checkpoint_2").is_dir()
            else:
                assert not said
            before = saved / "checkpoints" / "1"
            for path in before.rglob("*"):  # nothing else changes
                if path.is_file():
                    twin = out / "checkpoints" / "1" / path.relative_to(before)
                    assert twin.read_bytes() == path.read_bytes()
            told[kind, {1: "the one before", 2: "that one"}[number]] += 1
            shutil.rmtree(out)
    gc.collect()
    return told


def report(name, told):
    total = sum(told.values())
    print(f"{name}: {total} tried, 0 lost:", "; ".join(f"{k}: {n}" for k, n in told.items()))


@pytest.mark.slow
@leaves_files_open
def test_a_checkpoint_damaged_at_both_ends_of_every_file(tmp_path):
    told = damage_all(tmp_path, 1)
    report("damaged checkpoints, 2 places a file", told)
    assert told["gone", "the one before"] > 0
    assert told["a byte changed", "the one before"] > 0


@pytest.mark.slow
@leaves_files_open
def test_a_checkpoint_damaged_at_nine_places_of_every_file(tmp_path):
    report("damaged checkpoints, 9 places a file", damage_all(tmp_path, 8))


@leaves_files_open
def test_facts_that_were_changed_are_not_believed(tmp_path):
    """The files are JSON. They remain JSON if a digit changes."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state_of(1), facts_of(1))
    checkpoints.save(2, state_of(2), facts_of(2))
    changed = 0
    for path in (tmp_path / "checkpoints" / "2").rglob("*"):
        if path.is_file() and b'"number": 2' in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(b'"number": 2', b'"number": 3'))
            changed += 1
    assert changed
    found = checkpoints.restore(state_of(0), lambda text: None)
    checkpoints.close()
    assert found.facts == facts_of(1)
    gc.collect()


@leaves_files_open
def test_the_same_number_damaged_twice_is_put_aside_twice(tmp_path):
    for _ in range(2):
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(1, state_of(1), facts_of(1))
        for path in (tmp_path / "checkpoints" / "1").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        assert checkpoints.restore(state_of(0), lambda text: None) is None
        checkpoints.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoints", "damaged_checkpoint_1", "damaged_checkpoint_1_"]
    gc.collect()


# --- two writers


HOLD = """
import sys, time
from pathlib import Path
from experiments.common.folder import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path, capsys):
    assert adding_main([*SMALL, "--updates", "2", "--out", str(tmp_path)]) == 1
    record = (tmp_path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout.readline() == b"held\n"
            for flags in (SMALL, ("--resume",)):
                assert adding_main([*flags, "--out", str(tmp_path)]) == 2
                error = capsys.readouterr().err
                assert error.startswith(f"error: {tmp_path} is being written by another process")
                assert error.count("\n") == 1
        finally:
            first.send_signal(signal.SIGKILL)
    assert (tmp_path / "metrics.jsonl").read_bytes() == record
    assert adding_main(["--resume", "--out", str(tmp_path)]) == 1  # the lock ended with the process
    assert len(metrics.read_run(tmp_path / "metrics.jsonl").results) == 1


def test_the_lock_does_not_use_a_folder(tmp_path):
    with alone(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        with pytest.raises(UsageError, match="another process"), alone(tmp_path):
            pass
    make_folder(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="is in use"):
        make_folder(tmp_path)


def test_a_folder_of_something_else_gets_no_lock(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("Dear")
    assert adding_main([*SMALL, "--out", str(tmp_path)]) == 2
    assert "is in use" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_studies_in_one_go_are_alone_too(tmp_path, capsys):
    def never(_):
        pytest.fail("began")

    with alone(tmp_path):
        assert in_one_go(tmp_path, lambda: None, never) == 2
    assert "is being written by another process" in capsys.readouterr().err
    (tmp_path / "map.png").touch()
    assert in_one_go(tmp_path, lambda: None, never) == 2
    assert "is in use" in capsys.readouterr().err


# --- full disks and folders that cannot be written


def cannot_write(capsys, out, *flags):
    assert adding_main([*flags, "--out", str(out)]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write ")
    assert error.count("\n") == 1
    return error


full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


@pytest.mark.slow
@full
@pytest.mark.parametrize("name", ["metrics.new", "answers.png"])
def test_no_space_left(name, tmp_path, capsys):
    """The disk is full before there is a record, or after everything but a picture is written."""
    out = tmp_path / "run"
    if name == "metrics.new":
        out.mkdir()
        (out / name).symlink_to("/dev/full")
        error = cannot_write(capsys, out, *SMALL)
        assert "No space left on device. What was saved before is intact; make room, then " in error
        (out / name).unlink()
        assert adding_main([*SMALL, "--out", str(out)]) == 1
    else:
        assert adding_main([*SMALL, "--out", str(out)]) == 1
        (out / name).unlink()
        (out / name).symlink_to("/dev/full")
        capsys.readouterr()
        assert f"adding_task --out {out} --resume" in cannot_write(capsys, out, "--resume")
        (out / name).unlink()
        assert adding_main(["--resume", "--out", str(out)]) == 1
        assert (out / name).stat().st_size > 0


@full
def test_what_a_study_in_one_go_cannot_write(tmp_path, capsys):
    def run(_):
        with open("/dev/full", "w") as file:
            file.write("text")
        return 0

    assert in_one_go(tmp_path, lambda: None, run) == 4
    assert capsys.readouterr().err == f"error: cannot write {tmp_path}: No space left on device\n"


@full
def test_a_line_that_cannot_be_written(tmp_path):
    record = tmp_path / "metrics.jsonl"
    metrics.begin(record, {"replicas": []})
    writer = metrics.Writer(record, keep=1)
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._file.fileno())
    with pytest.raises(NotWritten, match=r"cannot write .*metrics.jsonl: No space left"):
        writer.write("eval", loss=1.0)
    assert writer.lines == 1
    assert writer._file.closed


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: write\nat offset 0"),
    ],
)
def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch, error):
    """Orbax and tensorstore wrap the errors of the system in their own."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state_of(1), facts_of(1))

    def save(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", save)
        with pytest.raises(
            NotWritten, match=r"cannot write \S*2: (No space|RESOURCE\S* write)"
        ) as e:
            checkpoints.save(2, state_of(2), facts_of(2))
    assert "\n" not in str(e.value)
    assert checkpoints.restore(state_of(0), print).facts == facts_of(1)
    checkpoints.save(2, state_of(2), facts_of(2))
    assert checkpoints.restore(state_of(0), print).facts == facts_of(2)
    checkpoints.close()


LIMITED = """
import os, resource, sys
from experiments.common.checkpoints import Checkpoints
from experiments.copy_task.__main__ import main

save, size, after = Checkpoints.save, int(sys.argv[1]), int(sys.argv[2])

def saved(self, number, *rest):
    if number > after:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    save(self, number, *rest)

Checkpoints.save = saved
sys.exit(main(sys.argv[3:]))
"""


def limited(size, after, *flags):
    """A process in which files cannot grow beyond a limit, after a number of checkpoints."""
    command = [sys.executable, "-c", LIMITED, str(size), str(after), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(optax_promotes, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*FLAGS, "--out", str(out)]) == 1
    return out


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 4])
def test_files_that_cannot_grow(whole, tmp_path, after):
    """The limit acts like a full disk: the system raises errors in the middle of writing."""
    out = tmp_path / "run"
    ended = limited(50_000, after, *FLAGS, "--out", str(out))
    assert ended.returncode == 4, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line == (
        f"error: cannot write {out / 'checkpoints' / str(after + 1)}: File too large. "
        "What was saved before is intact; make room, then continue: "
        f"python -m experiments.copy_task --out {out} --resume"
    )
    kept = sorted(int(path.name) for path in (out / "checkpoints").iterdir())
    assert kept == list(range(max(1, after - 2), after + 1))
    assert main(["--out", str(out), "--resume"]) == 1
    assert_same_run(whole, out)


def test_folders_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "run", tmp_path / "file"]
    if os.path.isdir("/proc/self"):
        places.append("/proc/nowhere/run")
    for out in places:
        for flags in (SMALL, ("--resume",)):
            assert adding_main([*flags, "--out", str(out)]) == 2
            error = capsys.readouterr().err
            assert error.startswith(("error: cannot write to ", "error: no run in "))
            assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- clocks


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """If the clock is set back or forward, neither the record nor the kept checkpoints change."""
    flags = ("--updates", "10")
    assert adding_main([*SMALL, *flags, "--out", str(tmp_path / "steady")]) == 1
    now, calls = time.time, Counter()

    def jumping():
        calls["time"] += 1
        return now() + (-1) ** calls["time"] * 1e7 * calls["time"]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping() * 1e9))
    assert adding_main([*SMALL, *flags, "--out", str(tmp_path / "jumping")]) == 1
    assert calls["time"] > 0  # Orbax writes the time into its metadata
    runs = [metrics.read_run(tmp_path / name / "metrics.jsonl") for name in ("steady", "jumping")]
    seconds = [line["seconds"] for line in runs[1].evals[0]]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[-1] < 100
    without = [[line | {"seconds": 0} for line in run.evals[0]] for run in runs]
    assert without[0] == without[1]
    kept = [
        sorted(p.name for p in (tmp_path / n / "checkpoints").iterdir())
        for n in ("steady", "jumping")
    ]
    assert kept[0] == kept[1] == ["3", "4", "5"]
