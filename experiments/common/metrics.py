"""The record of a run: one JSON object a line, written as it happens.

The first line is the header (`"kind": "header"`: settings, machine, what the numbers mean), then
come the evaluations (`"kind": "eval"`, each of one replica, that is one seed with one learning
rate), and last what came of each replica (`"kind": "result"`).
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
    results: list[Line]  # of each replica; none while the run goes on, or if it was killed


UNFINISHED = "metrics.new"  # the name of a record until its first lines are all there


class Writer:
    """Appends to a record; `lines` counts those written. Without a path it only counts.

    Raises: NotWritten.
    """

    def __init__(self, path: Path | None, keep: int) -> None:
        """Keep the first lines, those that belong to the checkpoint that is gone on from."""
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
                with suppress(OSError):  # which what could not be written causes once more
                    self._file.close()
                raise
        self.lines += 1

    def close(self) -> None:
        if self._file:
            self._file.close()


def begin(path: Path, header: Line) -> None:
    """A record with its header; a kill leaves all of it, or none. Raises: NotWritten."""
    _replace(path, [_as_line("header", header)])


def _replace(path: Path, lines: list[str]) -> None:
    fresh = path.with_name(UNFINISHED)
    with writing(path):
        fresh.write_text("".join(lines))
        os.replace(fresh, path)


def _as_line(kind: str, fields: Line) -> str:
    """Numbers have six digits; NaN and inf, which JSON lacks, become null."""
    return json.dumps({"kind": kind} | plain(fields), allow_nan=False) + "\n"


def read_run(path: Path) -> Run:
    """Raises: OSError, or ValueError if it is no record of a run."""
    lines = path.read_text().splitlines()
    if lines and not lines[-1].endswith("}"):  # killed in the middle of a line
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
    """What guessing gives, for each measure of the runs that is a share."""
    return {name: value for run in runs for name, value in run.header.get("chances", {}).items()}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
