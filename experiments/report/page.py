"""The page: tables, pictures and commands in one HTML file that needs no network."""

import base64
import html
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.metrics import Run
from experiments.common.plots import learning_curves
from experiments.report.table import Table

PICTURES = {
    "learning_curves.png": "Learning curves",
    "answers.png": "What the network answers",
    "gates.png": "What its gates do over time",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left;
  font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figcaption { color: #555; }
"""


def page(tables: list[Table], folders: dict[str, Path]) -> str:
    """Make the page. `folders` maps the command of each run to the folder of its pictures."""
    body = "".join(_section(table, folders) for table in tables)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>jaxgru: long-memory studies</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Long-memory studies</h1>\n{body}</body>\n</html>\n"
    )


def comparison(table: Table) -> bytes:
    """Draw the learning curves of all runs of a table in one picture."""
    figure = Figure(dpi=150, layout="constrained")
    learning_curves(figure, table.runs, table.labels)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _section(table: Table, folders: dict[str, Path]) -> str:
    parts = [f"<h2>{html.escape(table.title)}</h2>\n", _html_table(table)]
    drawable = [run for run in table.runs if any(run.evals)]
    if len(drawable) > 1:
        parts.append(_figure(comparison(table), "All runs of the table"))
    for run, label in zip(table.runs, table.labels, strict=True):
        parts.append(_run(run, label, folders))
    return "".join(parts)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    lines = (
        "".join(f"<td>{html.escape(row.get(column, ''))}</td>" for column in table.columns)
        for row in table.rows
    )
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"


def _run(run: Run, label: str, folders: dict[str, Path]) -> str:
    header = run.header
    parts = [
        f"<h3>{html.escape(label)}</h3>\n",
        f"<p><code>{html.escape(header['command'])}</code></p>\n",
        f"<p>{html.escape(header['machine'])}, jax {html.escape(header['jax'])}</p>\n",
    ]
    folder = folders[header["command"]]
    for name, caption in PICTURES.items():
        if (folder / name).exists():
            parts.append(_figure((folder / name).read_bytes(), caption))
    return "".join(parts)


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )
