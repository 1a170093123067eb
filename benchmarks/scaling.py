"""Run one study on more devices and more processes: `python -m benchmarks.scaling`.

Each run is `python -m experiments.adding_task` on virtual devices of this host's processor. So the
comparison is of losses. The rates show only the overhead of the division, since there is no more
hardware.
"""

import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import tyro

from experiments.common.machine import machine
from experiments.common.metrics import plain, read_run


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the same replicas on 1 to 8 devices and in 1 to 4 processes, and compare losses."""

    length: int = 100
    """T."""
    hidden: int = 64
    """H."""
    batch: int = 64
    """Examples of an update; a multiple of 8."""
    updates: int = 100
    """Updates of each replica."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds, with one replica for each."""
    rounds: int = 3
    """Runs of each layout, which take turns."""
    json: bool = False
    """Print JSON, not a table."""


class Layout(NamedTuple):
    processes: int
    devices: int  # of each process


class Result(NamedTuple):
    dtype: str
    layout: Layout
    rate: float  # updates of all replicas per second, the median
    first: float  # largest relative difference of a loss from that of one device, at the start
    last: float  # and at the end


ALONE = Layout(1, 1)
LAYOUTS = (ALONE, Layout(1, 2), Layout(1, 4), Layout(1, 8), Layout(2, 1), Layout(4, 1))
DTYPES = ("float64", "float32")
EVALUATIONS = 4


class Failed(Exception):
    """Raised if a run did not end as it should."""


def train(config: Config, dtype: str, layout: Layout) -> tuple[list[list[float]], float]:
    """(the losses of all replicas at each evaluation, updates per second)."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        given = {
            "dtype": dtype,
            "length": config.length,
            "hidden-size": config.hidden,
            "batch-size": config.batch,
            "updates": config.updates,
            "eval-every": config.updates // EVALUATIONS,
            "devices": layout.devices,
            "solved": 0,
            "save-every": 3600,
            "out": out,
        }
        if layout.processes > 1:
            given |= {"coordinator": f"localhost:{port}", "processes": layout.processes}
        flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        flags += ["--seeds", *map(str, config.seeds)]
        force = f"--xla_force_host_platform_device_count={layout.devices}"
        environment = os.environ | {"XLA_FLAGS": force, "JAX_PLATFORMS": "cpu"}
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "experiments.adding_task", *flags]
                + (["--process-id", str(number)] if layout.processes > 1 else []),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(layout.processes)
        ]
        said = [process.communicate()[1] for process in running]
        if any(process.returncode != 1 for process in running):  # 1: not solved, as expected
            raise Failed(f"{layout}: {' '.join(said)}")
        replicas = read_run(out / "metrics.jsonl").evals
    losses = [
        [line[name] for line in lines for name in ("train_loss", "test_loss")]
        for lines in zip(*replicas, strict=True)
    ]
    return losses, len(replicas) * config.updates / replicas[0][-1]["seconds"]


def measure(config: Config) -> list[Result]:
    runs = [(dtype, layout) for dtype in DTYPES for layout in LAYOUTS]
    losses, rates = {}, {run: [] for run in runs}
    for round_ in range(config.rounds):
        for dtype, layout in runs:
            print(f"round {round_ + 1}: {dtype}, {layout}", file=sys.stderr)
            losses[dtype, layout], rate = train(config, dtype, layout)
            rates[dtype, layout].append(rate)

    def apart(dtype: str, layout: Layout, at: int) -> float:
        pairs = zip(losses[dtype, layout][at], losses[dtype, ALONE][at], strict=True)
        return max(abs(a - b) / abs(b) for a, b in pairs)

    return [
        Result(*run, statistics.median(rates[run]), apart(*run, 0), apart(*run, -1)) for run in runs
    ]


def table(config: Config, results: list[Result]) -> str:
    first = config.updates // EVALUATIONS
    lines = [
        f"| | processes | devices of each | updates a second | loss apart after {first} updates "
        f"| after {config.updates} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for dtype, (processes, devices), rate, start, end in results:
        lines.append(
            f"| {dtype} | {processes} | {devices} | {rate:.1f} | {start:.1g} | {end:.1g} |"
        )
    return "\n".join(lines)


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.scaling")
    if config.batch % 8 or config.updates < EVALUATIONS:
        print(f"error: batch must be a multiple of 8 and updates {EVALUATIONS} or more, "
              f"got {config.batch} and {config.updates}", file=sys.stderr)  # fmt: skip
        return 2
    try:
        results = measure(config)
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if config.json:
        found = [result._asdict() | result.layout._asdict() for result in results]
        print(json.dumps(plain(found)))
    else:
        print(f"{machine()}; adding task, T={config.length} H={config.hidden} B={config.batch}")
        print(f"{len(config.seeds)} replicas, {config.rounds} runs each\n")
        print(table(config, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
