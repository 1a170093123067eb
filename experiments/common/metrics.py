"""The record of a run: one JSON object per line, written during the run.

The first line is the header (`"kind": "header"`: settings, machine, meaning of the numbers). The
evaluations follow (`"kind": "eval"`, each of one replica, that is one seed with one learning rate).
The outcome of each replica comes last (`"kind": "result"`).
"""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.folder import writing

Line = dict[str, Any]


class Run(NamedTuple):
    header: Line
    evals: list[list[Line]]  # of each replica
    results: list[Line]  # of each replica; empty during the run, or if it was killed


UNFINISHED = "metrics.new"  # the name of a record until its header is written


class Writer:
    """Append to a record. `lines` counts the lines written. Without a path it only counts.

    Raises: NotWritten.
    """

    def __init__(self, path: Path | None, keep: int) -> None:
        """Keep the first lines, which belong to the checkpoint from which the run continues."""
        self.lines = keep
        self._file = None
        if path:
            _replace(path, path.read_text().splitlines(keepends=True)[:keep])
            with writing(path):
                self._file = path.open("a")

    def write(self, kind: str, **fields: Any) -> None:
        if self._file:
            try:
                with writing(Path(self._file.name)):
                    self._file.write(_as_line(kind, fields))
                    self._file.flush()
            except BaseException:
                with suppress(OSError):  # closing retries the failed write
                    self._file.close()
                raise
        self.lines += 1

    def close(self) -> None:
        if self._file:
            self._file.close()


def begin(path: Path, header: Line) -> None:
    """Begin a record with its header. A kill leaves all of it, or nothing. Raises: NotWritten."""
    _replace(path, [_as_line("header", header)])


def _replace(path: Path, lines: list[str]) -> None:
    fresh = path.with_name(UNFINISHED)
    with writing(path):
        fresh.write_text("".join(lines))
        os.replace(fresh, path)


def _as_line(kind: str, fields: Line) -> str:
    """Write numbers with six digits, and NaN and inf, which JSON lacks, as null."""
    return json.dumps({"kind": kind} | plain(fields), allow_nan=False) + "\n"


def read_run(path: Path) -> Run:
    """Read a record. Raises: OSError, or ValueError if the file is not a record of a run."""
    lines = path.read_text().splitlines()
    if lines and not lines[-1].endswith("}"):  # the run was killed in the middle of a line
        lines.pop()
    try:
        header, *rest = [json.loads(line) for line in lines]
        replicas = range(len(header["replicas"]))
        evals = [line for line in rest if line["kind"] == "eval"]
        results = [line for line in rest if line["kind"] == "result"]
        return Run(
            header, [[line for line in evals if line["replica"] == r] for r in replicas], results
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a run: {error}") from error


def chances(runs: list[Run]) -> dict[str, float]:
    """The chance level of each measure of the runs that is a share."""
    return {name: value for run in runs for name, value in run.header.get("chances", {}).items()}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
