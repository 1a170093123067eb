"""Thin a record, so that it can be committed: `python -m experiments.report.thin --help`."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.common.metrics import Line, read_run

KEPT = 120


@dataclasses.dataclass(frozen=True)
class Config:
    """Keep about a hundred evaluations of each replica in the records of finished runs.

    It keeps the first, the last, and those around each change of length. Then it repeatedly adds
    the evaluation that lies farthest from the loss curve through those kept so far. The header
    records how many there were. The command replaces metrics.jsonl.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""


def kept(evals: list[Line]) -> list[int]:
    """The indices of the evaluations of a replica to keep."""
    lengths = [line["length"] for line in evals]
    grows = [k for k in range(1, len(evals)) if lengths[k] != lengths[k - 1]]
    stay = sorted({0, len(evals) - 1, *grows, *(k - 1 for k in grows)})
    updates = np.array([line["update"] for line in evals], float)
    curve = np.log([_loss(line) for line in evals])
    while len(stay) < min(KEPT, len(evals)):
        errors = np.abs(curve - np.interp(updates, updates[stay], curve[stay]))
        errors[stay] = -1
        stay = sorted({*stay, int(errors.argmax())})
    return stay


def _loss(line: Line) -> float:
    """The loss that is drawn. A loss that is zero or not finite counts as 1."""
    return line.get("test_loss", line["train_loss"]) or 1.0


def thin(path: Path) -> None:
    """Thin a record. Raises: OSError, or ValueError if it is not of a finished run."""
    run = read_run(path)
    if not run.results:
        raise ValueError(f"{path}: the run has not finished, and could not be resumed afterwards")
    counts = [len(evals) for evals in run.evals]
    if "evaluations" in run.header or max(counts) <= KEPT:
        return
    stay = {(r, evals[k]["update"]) for r, evals in enumerate(run.evals) for k in kept(evals)}
    lines = [json.dumps(run.header | {"evaluations": counts}) + "\n"]
    for text in path.read_text().splitlines(keepends=True)[1:]:
        line = json.loads(text)
        if line["kind"] != "eval" or (line["replica"], line["update"]) in stay:
            lines.append(text)
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(lines))
    os.replace(fresh, path)


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(Config, prog="python -m experiments.report.thin", args=args)
    try:
        for folder in config.runs:
            thin(folder / "metrics.jsonl")
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
