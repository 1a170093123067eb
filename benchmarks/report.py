"""Tables and pictures of the measurements, as ratios to jaxgru."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.timing import Row
from experiments.common.metrics import plain

OURS = "jaxgru"
#: These contestants have time-major arrays, so jaxgru is compared in that layout.
TIME_MAJOR = ("haiku", "torch", "onnxruntime")


class Ratio(NamedTuple):
    """The number of another contestant over that of jaxgru."""

    minima: float
    medians: float
    verdict: int
    """1 if jaxgru is faster and -1 if it is slower: the middle half of the rounds of one does not
    overlap that of the other. 0 if they overlap."""


def ratios(row: Row) -> dict[str, Ratio]:
    """The ratio of each contestant. Empty for numbers that stand alone."""
    found = {}
    if OURS not in row.values:
        return found
    for name, value in row.values.items():
        if name.startswith(OURS):
            continue
        reference = row.values[OURS]
        if name in TIME_MAJOR and f"{OURS} time-major" in row.values:
            reference = row.values[f"{OURS} time-major"]
        verdict = int(value.low > reference.high) - int(value.high < reference.low)
        found[name] = Ratio(
            value.minimum / reference.minimum, value.median / reference.median, verdict
        )
    return found


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(rows: list[Row]) -> str:
    """Make one table for every suite and quantity.

    Ratios are medians (minima), bold if jaxgru is faster and italic if it is slower. The number of
    jaxgru itself is the median, with the quartiles.
    """
    parts = []
    for suite, what in dict.fromkeys((row.suite, row.what) for row in rows):
        mine = [row for row in rows if (row.suite, row.what) == (suite, what)]
        if OURS not in mine[0].values:
            parts.append(_plain(mine))
            continue
        names = list(dict.fromkeys(name for row in mine for name in ratios(row)))
        unit = "ms" if mine[0].unit == "s" else mine[0].unit
        head = ["", f"jaxgru, {unit}", *names]
        lines = [f"**{suite}, {what}**", "", _line(head), _line(["---"] * len(head))]
        for row in mine:
            found = ratios(row)
            cells = [_ratio(found.get(name)) for name in names]
            lines.append(_line([row.case, _own(row), *cells]))
        if len(mine) > 1 and names:
            means = []
            for name in names:
                every = [ratios(row)[name] for row in mine if name in ratios(row)]
                minima = geometric_mean([ratio.minima for ratio in every])
                medians = geometric_mean([ratio.medians for ratio in every])
                means.append(_ratio(Ratio(minima, medians, 0)))
            lines.append(_line(["geometric mean", "", *means]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _plain(rows: list[Row]) -> str:
    """A table of medians, with "none" where there is no number."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    head = ["", *(f"{name}, {rows[0].unit}" for name in names)]
    lines = [f"**{rows[0].suite}, {rows[0].what}**", "", _line(head)]
    lines.append(_line(["---"] * len(head)))
    for row in rows:
        values = [row.values[name].median for name in names]
        cells = [f"{value:.4g}" if math.isfinite(value) else "none" for value in values]
        lines.append(_line([row.case, *cells]))
    return "\n".join(lines)


def _own(row: Row) -> str:
    factor = 1e3 if row.unit == "s" else 1
    times = row.values[OURS]
    low, median, high = (f"{factor * t:.3g}" for t in (times.low, times.median, times.high))
    return median if low == high else f"{median} ({low} to {high})"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    mark = {1: "**", 0: "", -1: "_"}[ratio.verdict]
    return f"{mark}{ratio.medians:.2f} ({ratio.minima:.2f}){mark}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def to_json(path: Path, header: dict[str, Any], rows: list[Row]) -> None:
    lines = [
        row._asdict() | {"values": {name: value._asdict() for name, value in row.values.items()}}
        for row in rows
    ]
    write_record(path, header | {"rows": lines})


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record. Numbers have six digits. The folder is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n")


def picture(path: Path, title: str, rows: list[Row]) -> None:
    """Draw the times of all contestants over that of jaxgru, with a panel for each quantity."""
    quantities = list(dict.fromkeys(row.what for row in rows))
    size = (4.6 * len(quantities) + 1.4, 0.42 * len(rows) / len(quantities) + 1.8)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, horizontalalignment="left")
    panels = figure.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for row in rows for name in ratios(row)))
    for panel, what in zip(panels, quantities, strict=True):
        mine = [row for row in rows if row.what == what]
        for k, name in enumerate(names):
            points = [
                (ratios(row)[name].medians, y) for y, row in enumerate(mine) if name in ratios(row)
            ]
            if points:
                marker = "|" if name == "the limit" else "o"
                panel.plot(*zip(*points, strict=True), marker, color=f"C{k}", label=name)
        panel.axvline(1, color="0.2", linewidth=1)
        panel.set_xscale("log")
        panel.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        panel.minorticks_off()
        panel.set_yticks(range(len(mine)), [row.case for row in mine], fontsize=8)
        panel.set_xlabel(f"{'memory' if mine[0].unit == 'MB' else 'time'} over that of jaxgru")
        panel.set_title(what, fontsize=9)
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    handles = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(handles.values(), handles, frameon=False, fontsize=8, loc="outside right center")
    figure.savefig(path)
