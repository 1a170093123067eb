"""The record of a run: one JSON object a line, written as it happens.

The first line is the header (`"kind": "header"`, everything needed to read the rest), then one
line an evaluation (`"kind": "eval"`), and last what came of it (`"kind": "result"`).
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TextIO

Line = dict[str, Any]


class Run(NamedTuple):
    header: Line
    evals: list[Line]
    result: Line | None  # None: the run was killed, or still goes on


def write_line(file: TextIO, kind: str, **fields: Any) -> None:
    """Append one line and flush it. NaN and inf, which JSON does not have, become null."""
    line = {"kind": kind} | {name: _finite(value) for name, value in fields.items()}
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()


def read_run(path: Path) -> Run:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    evals = [line for line in lines if line["kind"] == "eval"]
    results = [line for line in lines if line["kind"] == "result"]
    return Run(lines[0], evals, results[-1] if results else None)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
