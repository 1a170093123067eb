"""One live line on a terminal; in a log, a plain line every few seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LOG_SECONDS = 5.0

Show = Callable[[int, float, float], None]


@contextmanager
def progress(console: Console, updates: int, baseline: float) -> Iterator[Show]:
    """Yields `show(update, loss, seconds)`, to be called after every evaluation."""

    def describe(update: int, loss: float, seconds: float) -> str:
        rate = update / seconds
        minutes, rest = divmod(round((updates - update) / rate), 60)
        return (
            f"{update:,}/{updates:,} updates, {rate:.3g}/s, "
            f"loss {loss:.2e} (baseline {baseline:.4f}), at most {minutes}:{rest:02d} left"
        )

    if not console.is_terminal:
        last = -float("inf")

        def log(update: int, loss: float, seconds: float) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LOG_SECONDS or update == updates:
                last = now
                console.print(describe(update, loss, seconds), soft_wrap=True)

        yield log
        return

    columns = (BarColumn(bar_width=None), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, expand=True) as live:
        task = live.add_task(f"0/{updates:,} updates", total=updates)

        def show(update: int, loss: float, seconds: float) -> None:
            live.update(task, completed=update, description=describe(update, loss, seconds))

        yield show
