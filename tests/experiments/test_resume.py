"""A run that is killed and resumed ends like a run without interruptions."""

import gc
import os
import random
import shutil
import signal
import subprocess
import time
from typing import Any

import numpy as np
import pytest

from cases import slow
from experiments.common.checkpoints import Checkpoints
from experiments.common.metrics import read_run
from experiments.copy_task.__main__ import main
from runs import FLAGS, assert_same_run, start, without_pictures

pytestmark = pytest.mark.usefixtures("optax_promotes", "no_pictures")

# Orbax leaves files of a damaged checkpoint open. The garbage collector closes them here.
leaves_files_open = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def whole(optax_promotes, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    out.mkdir()
    # Unfinished files of a killed run do not count as a use of the folder.
    (out / "metrics.new").write_text("{")
    with without_pictures():
        assert main([*FLAGS, "--out", str(out)]) == 1
    return out


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_stopped_at_six_random_moments(whole, tmp_path):
    """The moments are random in every run of this test, during training and writing.

    They come after the first line that the study prints. Before it Python imports libraries in
    C++, some of which abort or crash the process when a signal raises KeyboardInterrupt there.
    """
    out, draw = tmp_path / "run", random.Random()
    told: Any = {"stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    told["env"] = os.environ | {"PYTHONUNBUFFERED": "1"}
    sent = []
    flags = FLAGS
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) * 2:
        with start(out, *flags, **told) as process:
            process.stdout.readline()
            time.sleep(draw.uniform(0, 4))
            if process.poll() is None:
                process.send_signal(number)
                sent.append(number.name)
            process.communicate()
        # Before and after training, signals end the process without a message.
        assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130, 1)
        if process.returncode == 1:  # the run finished before the moment came
            break
        flags = ("--resume",)
    else:
        assert start(out, *flags, stderr=subprocess.DEVNULL).wait() == 1
    assert sent
    assert_same_run(whole, out)
    print(f"random moments: {len(sent)} tried, 0 lost: {' '.join(sent)}")


@pytest.mark.slow
def test_killed_before_there_was_anything_to_save(whole, tmp_path, capsys):
    """The header exists completely or not at all."""
    out = tmp_path / "run"
    out.mkdir()
    header = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (out / "metrics.new").write_text(header[:50])
    assert main(["--out", str(out), "--resume"]) == 2
    assert "no run in" in capsys.readouterr().err
    (out / "metrics.new").rename(out / "metrics.jsonl")
    (out / "metrics.jsonl").write_text(header)
    assert main(["--out", str(out), "--resume"]) == 1
    assert "No checkpoint yet" in capsys.readouterr().out
    assert_same_run(whole, out)


def test_a_curriculum_grows_each_replica_by_itself(whole, tmp_path, capsys):
    alone = [*FLAGS[: FLAGS.index("--seeds")], *FLAGS[FLAGS.index("--updates") :], "--seeds", "1"]
    assert main([*alone, "--out", str(tmp_path / "alone")]) == 1
    assert "curriculum  2 stages" in capsys.readouterr().out
    together = read_run(whole / "metrics.jsonl").evals
    (by_itself,) = read_run(tmp_path / "alone" / "metrics.jsonl").evals
    lengths = [[line["length"] for line in replica] for replica in together]
    assert lengths[0] != lengths[1]
    assert 12 in lengths[1]
    assert [line["length"] for line in by_itself] == lengths[1]
    for a, b in zip(together[1], by_itself, strict=True):
        if a["update"] <= 20:  # later, training makes roundings of another order of sums grow
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert ("test_loss" in a) == (a["length"] == 12 or a["update"] == 100)


def torn(whole, out):
    """A copy of the run, whose record ends in the middle of a line."""
    shutil.copytree(whole, out)
    record = (whole / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(record[:-7])
    return out


@pytest.mark.slow
@leaves_files_open
def test_lines_that_no_checkpoint_holds_are_written_again(whole, tmp_path):
    """A copy as a kill leaves it: with torn lines in the record, and half a checkpoint."""
    out = torn(whole, tmp_path / "run")
    last = max(int(path.name) for path in (out / "checkpoints").iterdir())
    for path in (out / "checkpoints" / str(last)).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(["--out", str(out), "--resume"]) == 1
    assert_same_run(whole, out)
    gc.collect()


@leaves_files_open
@pytest.mark.parametrize("damage", ["flip", *map(slow, ("cut", "gone"))])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, capsys, damage):
    out = torn(whole, tmp_path / "run")
    last = max(int(path.name) for path in (out / "checkpoints").iterdir())
    data = max((out / "checkpoints" / str(last)).rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "gone":
        data.unlink()
    else:
        data.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert main(["--out", str(out), "--resume"]) == 1
    assert f"Checkpoint {last} is damaged" in capsys.readouterr().out
    assert (out / f"damaged_checkpoint_{last}").is_dir()
    assert_same_run(whole, out)
    gc.collect()


def test_a_finished_run_is_told_again(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert main(["--out", str(out), "--resume"]) == 1
    assert "not solved" in capsys.readouterr().out
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_run(whole, out)


def test_a_run_goes_on_as_it_began(whole, capsys):
    assert main(["--out", str(whole), "--resume", "--hidden-size", "17"]) == 2
    error = capsys.readouterr().err
    assert "--hidden-size is 16 in" in error
    assert "got 17" in error


@pytest.mark.parametrize("text", ["", "{", '{"kind": "header"}', "[]", '{"replicas": 3}'])
def test_what_is_no_record_is_not_gone_on_with(text, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert main(["--out", str(tmp_path), "--resume"]) == 2
    assert "no run in" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_only_the_last_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for number in range(1, 6):
        checkpoints.save(number, {"x": np.arange(number)}, {"number": number})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4", "5"]
    found = checkpoints.restore({"x": np.zeros(5, np.int64)}, print)
    assert found is not None
    assert found.facts["number"] == 5
    np.testing.assert_array_equal(found.state["x"], np.arange(5))
    checkpoints.close()
