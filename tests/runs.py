"""A small run of the copy task, and the parts that must not depend on interruptions."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.common import metrics, pictures

ROOT = Path(__file__).parents[1]

# Two replicas pass through a curriculum at different speeds.
FLAGS = ("--length", "12", "--cell", "elman", "--chrono", "0", "--hidden-size", "16",
         "--batch-size", "8", "--first-symbols", "10", "--pass-symbols", "0.1", "--pass-nats",
         "23.6", "--seeds", "0", "1", "--updates", "100", "--eval-every", "5",
         "--test-examples", "20", "--save-every", "0")  # fmt: skip


def content(out):
    """Everything that must be equal: the last checkpoint, and the record without its times."""
    with ocp.CheckpointManager(out.absolute() / "checkpoints") as manager:
        step = manager.latest_step()
        items = ocp.args.Composite(state=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore())
        found = manager.restore(step, args=items)
    leaves = jax.tree_util.tree_leaves_with_path(found["state"])
    state = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}
    facts = dict(found["facts"])
    facts.pop("seconds")
    facts.pop("compiling")
    facts.pop("digest")  # it covers the times too
    _, evals, results = metrics.read_run(out / "metrics.jsonl")
    times = {"seconds": 0, "compile_seconds": 0}
    lines = [line | times for line in (*evals[0], *evals[1], *results)]
    return step, state, facts, lines


def assert_same_run(a, b):
    assert content(a) == content(b)


@contextmanager
def without_pictures():
    """Let runs of this process draw no pictures, which take a third of the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda *args: [])
        yield


def on_devices(count):
    """The environment of a process that has so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(out, *flags, **options):
    command = [sys.executable, "-m", "experiments.copy_task", *flags, "--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, **{"stdout": subprocess.DEVNULL, **options})
