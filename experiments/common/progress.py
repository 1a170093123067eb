"""One live line on a terminal; in a log, a plain line every few seconds."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments.common.metrics import Line

LOG_SECONDS = 5.0

Show = Callable[[Line], None]


@contextmanager
def progress(
    console: Console, updates: int, replicas: int, baseline: float, shares: Collection[str] = ()
) -> Iterator[Show]:
    """Yield `show(line)`. Call it with each evaluation that goes into the record.

    `updates` is the budget of each replica. `shares` are the measures shown in percent.
    """
    latest: dict[int, Line] = {}
    first: dict[int, int] = {}
    start = time.monotonic()

    def describe(line: Line) -> str:
        replica, update = line["replica"], line["update"]
        first.setdefault(replica, update)
        latest[replica] = line
        made = sum(latest[r]["update"] - first[r] for r in latest)
        rate = made / (time.monotonic() - start)
        left = sum(
            updates - latest[r]["update"] if r in latest else updates for r in range(replicas)
        )
        loss = line.get("test_loss", line["train_loss"])
        others = [name.removeprefix("train_") for name in line if name.startswith("train_")]
        parts = [
            f"{update:,}/{updates:,} updates",
            f"T={line['length']:,}",
            f"loss {_number(loss)} (baseline {baseline:.3g})",
        ]
        if rate:
            parts.insert(1, f"{rate:.3g}/s")
        if replicas > 1:
            parts.insert(0, f"replica {replica}")
        for name in others:
            value = line.get(f"test_{name}", line[f"train_{name}"])
            if name != "loss" and value is not None:
                parts.append(f"{name} {value:.2%}" if name in shares else f"{name} {value:.4g}")
        if rate:
            minutes, rest = divmod(round(left / rate), 60)
            parts.append(f"at most {minutes:,}:{rest:02d} left")
        return ", ".join(parts)

    if not console.is_terminal:
        last: dict[int, float] = {}

        def log(line: Line) -> None:
            now = time.monotonic()
            text = describe(line)
            recent = now - last.get(line["replica"], -LOG_SECONDS) < LOG_SECONDS
            if not recent or line["update"] == updates:
                last[line["replica"]] = now
                console.print(text, soft_wrap=True)

        yield log
        return

    columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, expand=True) as live:
        task = live.add_task(f"0/{updates:,} updates, compiling", total=updates * replicas)

        def show(line: Line) -> None:
            text = describe(line)
            done = sum(entry["update"] for entry in latest.values())
            live.update(task, completed=done, description=text)

        yield show


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2e}"
