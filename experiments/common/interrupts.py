"""Ctrl-C and SIGTERM as a request to stop, which a study obeys between two chunks of work."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """`asked` tells whether to stop."""

    asked = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Remember the first signal. The second raises KeyboardInterrupt."""
    wish = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # only it can catch signals
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
