"""A study with several processes, here on one host over gloo, equals the study with one."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from experiments.adding_task.__main__ import main
from experiments.common.metrics import read_run
from experiments.common.processes import LOST
from runs import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL and SIGTERM"),
    pytest.mark.usefixtures("optax_promotes"),
]

SECONDS = 120  # after this time a process counts as hanging
# The runs use float64, where the order of sums hardly matters. A record has six digits, and the
# last one may differ by one.
DIGITS = 2e-5
# There are three replicas, so every process has a share of each batch.
FLAGS = ("--dtype", "float64", "--length", "9", "--hidden-size", "6", "--batch-size", "16",
         "--updates", "400", "--eval-every", "10", "--test-examples", "13", "--save-every", "0",
         "--seeds", "0", "1", "2", "--solved", "0")  # fmt: skip


def free_port(least=0):
    """Find a free port: any, or the first from `least` on."""
    with socket.socket() as free:
        while True:
            try:
                free.bind(("localhost", least))
                return free.getsockname()[1]
            except OSError:
                least += 1


def popen(out, *flags, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.adding_task", *flags, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(count, out, *flags):
    flags = (*flags, "--coordinator", f"localhost:{free_port()}", "--processes", str(count))
    return [popen(out, *flags, "--process-id", str(number)) for number in range(count)]


def start_by_slurm(count, out, *flags):
    """Start processes as `srun` does. JAX derives the port from the number of the job."""
    least = 2**16 - 2**12  # JAX takes the number of the job modulo 2**12 and adds this
    job = {"SLURM_JOB_ID": str(free_port(least + 99) - least), "SLURM_NTASKS": str(count)}
    job["SLURM_STEP_NODELIST"] = "localhost"
    numbers = [{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(count)]
    return [popen(out, *flags, "--coordinator", "auto", **job, **number) for number in numbers]


def finish(processes):
    """Return the exit codes, the outputs and the errors."""
    try:
        said = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [p.returncode for p in processes], *(list(texts) for texts in zip(*said, strict=True))


def wait_for_checkpoint(out, processes):
    until = time.monotonic() + SECONDS
    while not any(path.name.isdecimal() for path in out.glob("checkpoints/*")):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < until
        time.sleep(0.01)


def evals(out):
    lines = [line for replica in read_run(out / "metrics.jsonl").evals for line in replica]
    return [{k: v for k, v in line.items() if k not in ("seconds", "kind")} for line in lines]


def assert_same(out, other):
    assert len(evals(out)) == len(evals(other))
    for a, b in zip(evals(out), evals(other), strict=True):
        assert a == pytest.approx(b, rel=DIGITS)


@pytest.fixture(scope="module")
def alone(optax_promotes, tmp_path_factory):
    before, out = jax.config.jax_enable_x64, tmp_path_factory.mktemp("alone") / "run"
    assert main([*FLAGS, "--out", str(out)]) == 1
    jax.config.update("jax_enable_x64", before)
    return out


@pytest.mark.parametrize("begin", [start, start_by_slurm])
def test_two_processes_compute_what_one_does_and_the_first_speaks(begin, alone, tmp_path):
    codes, printed, errors = finish(begin(2, tmp_path / "run", *FLAGS))
    assert codes == [1, 1], errors
    assert "2 devices, processes: 2" in printed[0]
    said = [line for line in printed[1].splitlines() if not line.startswith("[Gloo]")]
    assert said == []
    assert read_run(tmp_path / "run" / "metrics.jsonl").header["processes"] == 2
    assert_same(alone, tmp_path / "run")


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_is_killed_and_four_go_on(victim, alone, tmp_path):
    """The kill comes at a random moment, which differs in every run of this test."""
    out = tmp_path / "run"
    processes = start(2, out, *FLAGS)
    wait_for_checkpoint(out, processes)
    time.sleep(random.Random().uniform(0, 1))
    processes[victim].send_signal(signal.SIGKILL)
    codes, _, errors = finish(processes)
    assert codes[victim] == -signal.SIGKILL
    if victim == 0 and codes[1] == -signal.SIGABRT:  # JAX noticed first that the server was gone
        assert "Terminating process because the JAX distributed service" in errors[1]
    else:
        assert codes[1 - victim] == LOST, errors
        assert "another process was lost, continue with --resume" in errors[1 - victim]
    codes, printed, errors = finish(start(4, out, "--resume"))
    assert codes == [1] * 4, errors
    assert "Going on after" in printed[0]
    assert_same(alone, out)


def test_sigterm_to_one_stops_all_and_one_goes_on(alone, tmp_path):
    out = tmp_path / "run"
    processes = start(2, out, *FLAGS)
    wait_for_checkpoint(out, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, printed, errors = finish(processes)
    assert codes == [130, 130], errors
    assert "everything is saved" in printed[0]
    before = jax.config.jax_enable_x64
    assert main(["--out", str(out), "--resume"]) == 1
    jax.config.update("jax_enable_x64", before)
    assert_same(alone, out)


def test_what_the_first_refuses_all_refuse(alone):
    codes, _, errors = finish(start(2, alone, *FLAGS))
    assert codes == [2, 2]
    assert f"error: the run in {alone} is finished" in errors[0]
    assert "error: " not in errors[1]
