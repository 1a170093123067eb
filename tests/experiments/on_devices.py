"""test_devices.py runs this in a process with eight devices. It prints its results as JSON."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np

from experiments.adding_task.__main__ import main as adding
from experiments.adding_task.settings import AddingSettings
from experiments.adding_task.task import make_task
from experiments.common.metrics import read_run
from experiments.common.programs import Programs, make_mesh
from experiments.common.training import train_init
from experiments.copy_task.__main__ import main as copy

MAINS = {"adding": adding, "copy": copy}
COLLECTIVE = r" (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("


def collectives():
    """Count each operation in the training program, and in its loops over time."""
    settings = AddingSettings(length=40, hidden_size=8, batch_size=16, eval_every=3)
    task = make_task(settings)
    programs = Programs(task, settings, jax.devices())
    state = train_init(task, settings, np.uint32(0), np.float32(1e-2))
    states = jax.tree.map(lambda leaf: np.asarray(leaf)[None], state)
    programs.train(states, 1, task.stages[0])
    (compiled,) = programs._cache.values()
    found = {}
    for line in compiled.as_text().splitlines():
        if match := re.search(COLLECTIVE, line):
            # The loop over updates must have it. An operation in two loops is in a loop over time.
            loops = re.search(r'op_name="([^"]*)"', line)
            depth = loops.group(1).count("while/body") if loops else 0
            key = f"{match.group(1)} in {depth} loops"
            found[key] = found.get(key, 0) + 1
    return found


def meshes():
    return {n: tuple(make_mesh(jax.devices(), n).shape.values()) for n in (1, 2, 3, 4, 8, 12)}


if __name__ == "__main__":
    jobs = json.loads(sys.argv[1])
    found = {"collectives": collectives(), "meshes": meshes(), "runs": []}
    for task, flags in jobs:
        code = MAINS[task](flags)
        out = Path(flags[flags.index("--out") + 1])
        found["runs"].append([code, read_run(out / "metrics.jsonl").evals])
    print("found:" + json.dumps(found))
