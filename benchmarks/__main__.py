"""Time jaxgru against other libraries, side by side: `python -m benchmarks --help`."""

import dataclasses
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import report
from benchmarks.suites import PICTURES, SUITES
from benchmarks.versions import versions
from experiments.common.machine import machine


@dataclasses.dataclass(frozen=True)
class Config:
    """Time jaxgru against the other libraries that are installed.

    All contestants have the same weights and take turns in one process. The command compares their
    outputs and gradients before it times anything. Numbers are medians, with minima in brackets.
    """

    suites: Annotated[
        tuple[
            Literal[
                "grid",
                "reset_before",
                "lstm",
                "elman",
                "layers",
                "own",
                "batch",
                "population",
                "seeds",
                "streaming",
                "compilation",
                "memory",
                "length",
                "newton",
            ],
            ...,
        ],
        tyro.conf.Positional,
    ] = tuple(SUITES)  # pyright: ignore[reportAssignmentType]
    """What to measure; everything if none is named."""
    rounds: int = 9
    """Turns that every contestant gets."""
    out: Path | None = None
    """Folder for a JSON file, a table and a picture of every suite; nothing is written if none."""


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks")
    if config.rounds < 1:
        print(f"error: --rounds must be at least 1, got {config.rounds}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")  # from the other libraries
    console = Console()
    console.print(f"{machine()}; {versions()}")
    for name in config.suites:
        console.rule(name)
        start = time.perf_counter()
        rows = []
        for row in SUITES[name](config.rounds):
            rows.append(row)
            ratios = report.ratios(row).items()
            found = {k: f"{v.medians:.2f} ({v.minima:.2f})" for k, v in ratios}
            values = {k: f"{v.median:.4g} {row.unit}" for k, v in row.values.items()}
            console.print(f"{row.case}, {row.what}: {values}; {found}")
        seconds = time.perf_counter() - start
        table = report.markdown(rows)
        console.print(Markdown(table))
        if config.out is not None:
            command = f"python -m benchmarks {name} --rounds {config.rounds}"
            header = {
                "command": command,
                "machine": machine(),
                "versions": versions(),
                "seconds": round(seconds),
            }
            report.to_json(config.out / f"{name}.json", header, rows)
            note = f"`{command}`, {machine()}, {round(seconds)} s.\n\n"
            (config.out / f"{name}.md").write_text(note + table)
            if any(report.ratios(row) for row in rows):
                picture = PICTURES.get(name, report.picture)
                picture(config.out / f"{name}.png", f"{name}, {machine()}", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
