"""Tables of runs and published numbers, and their Markdown."""

import dataclasses
import statistics
from typing import Any

from experiments.common.metrics import Line, Run, chances
from experiments.common.settings import PLACE
from experiments.report.published import PUBLISHED

NAMES = {"adding_task": "Adding problem", "copy_task": "Copy task"}
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """The runs of one task, layout and length, and the published numbers for them."""

    title: str
    columns: list[str]
    rows: list[Row]
    runs: list[Run]
    labels: list[str]  # of the runs: how they differ


def tables(runs: list[Run]) -> list[Table]:
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        settings = run.header["settings"]
        key = (run.header["task"], settings.get("layout", ""), settings["length"])
        groups.setdefault(key, []).append(run)
    return [_table(*key, groups[key]) for key in sorted(groups)]


def markdown(table: Table) -> str:
    columns = table.columns
    lines = [f"## {table.title}", "", " | ".join(["", *columns, ""]).strip()]
    lines.append("| " + " | ".join("---" for _ in columns) + " |")
    for row in table.rows:
        lines.append("| " + " | ".join(row.get(column, "") for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _table(task: str, layout: str, length: int, runs: list[Run]) -> Table:
    shares = chances(runs)
    baseline = {
        "network": "no memory: the baseline",
        "test loss": f"{runs[0].header['baseline']:.3g}",
    } | {name: f"{value:.1%}" for name, value in shares.items()}
    published = [
        {"network": f"{row.network} ({row.source})", "test loss": f"{row.loss:.3g}"}
        for row in PUBLISHED
        if (row.task, row.layout, row.length) == (task, layout, length)
    ]
    others = dict.fromkeys(name for run in runs for name in run.header["measures"])
    others.pop("loss")
    forms = {name: "{:.2%}" if name in shares else "{:.4g}" for name in others}
    labels = _labels(runs)
    rows = [_row(run, label, forms) for run, label in zip(runs, labels, strict=True)]
    title = ", ".join(part for part in (NAMES.get(task, task), layout, f"T={length:,}") if part)
    columns = ["network", "parameters", "test loss", *others, "solved", "updates", "minutes"]
    return Table(title, columns, [baseline, *published, *rows], runs, labels)


def _row(run: Run, label: str, forms: dict[str, str]) -> Row:
    """The row of a run. `forms` holds the format of each measure except the loss."""
    lasts = [_last(run, replica) for replica in range(len(run.evals))]
    solved = sum(last.get("verdict") == "solved" for last in lasts)
    row = {
        "network": label,
        "parameters": f"{run.header['parameters']:,}",
        "test loss": _spread([last.get("test_loss") for last in lasts], "{:.2g}"),
        "solved": f"{solved} of {len(lasts)}",
        "updates": _spread([last.get("update") for last in lasts], "{:,}"),
    }
    for name, form in forms.items():
        row[name] = _spread([last.get(f"test_{name}") for last in lasts], form)
    seconds = max((last.get("seconds") or 0 for last in lasts), default=0)
    row["minutes"] = f"{seconds / 60:.1f}"
    if not run.results:
        row["solved"] = "unfinished"
    return row


def _last(run: Run, replica: int) -> Line:
    for result in run.results:
        if result["replica"] == replica:
            return result
    return run.evals[replica][-1] if run.evals[replica] else {}


def _spread(values: list[Any], form: str) -> str:
    """The median, with the least and the greatest in brackets."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    median = form.format(statistics.median_low(known))
    least, greatest = form.format(min(known)), form.format(max(known))
    return median if least == greatest else f"{median} ({least} to {greatest})"


def _labels(runs: list[Run]) -> list[str]:
    """The cell and size of each run, and the settings in which it differs from most others."""
    ignored = (*PLACE, "save_every", "cell", "hidden_size", "preset", "length", "layout")
    all_settings = [run.header["settings"] for run in runs]
    labels = []
    for settings in all_settings:
        parts = [f"{settings['cell']} of {settings['hidden_size']}"]
        for name, value in settings.items():
            usual = statistics.mode(_text(other.get(name)) for other in all_settings)
            if name not in ignored and _text(value) != usual:
                parts.append(f"{name.replace('_', ' ')} {_text(value)}")
        labels.append(", ".join(parts))
    return labels


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
