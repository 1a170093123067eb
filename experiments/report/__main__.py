"""Compare runs with published numbers: `python -m experiments.report --help`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.common.metrics import read_run
from experiments.report.page import comparison, page
from experiments.report.table import markdown, tables


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare runs with the published numbers and the baselines.

    It writes report.html (one file, no network needed), report.md, and a picture for each table of
    several runs.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""
    out: Path = Path("runs/report")
    """Folder to write into."""


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(Config, prog="python -m experiments.report", args=args)
    if not config.runs:
        print("error: name at least one folder of a run", file=sys.stderr)
        return 2
    try:
        runs = {folder: read_run(folder / "metrics.jsonl") for folder in config.runs}
        folders = {run.header["command"]: folder for folder, run in runs.items()}
        found = tables(list(runs.values()))
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "report.html").write_text(page(found, folders))
        text = "\n".join(markdown(table) for table in found)
        (config.out / "report.md").write_text(text)
        for number, table in enumerate(found):
            if len(table.runs) > 1:
                (config.out / f"comparison_{number}.png").write_bytes(comparison(table))
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
