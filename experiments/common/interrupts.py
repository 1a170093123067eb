"""Ctrl-C and SIGTERM as a wish to stop: heeded between two chunks of work, when all is in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """`asked`: whether to stop."""

    asked = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """The first signal is remembered, the second raises KeyboardInterrupt."""
    wish = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # where none can be caught
        yield wish
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, wish._ask)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
