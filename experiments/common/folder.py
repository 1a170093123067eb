"""The folder of a run: written by one process at a time, and what cannot be written is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.common.settings import UsageError

LOCK = "lock"


class NotWritten(Exception):
    """A full disk and the like. What was saved before is whole."""


@contextmanager
def writing(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Errors of the system, and the others named, become `NotWritten`, in one line."""
    try:
        yield
    except (OSError, *errors) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NotWritten(f"cannot write {path}: {reason.splitlines()[0][:200]}") from error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """No other process writes to the folder meanwhile.

    A lock of the operating system, which goes with the process however that ends; the file stays.

    Raises: UsageError.
    """
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"{out} is being written by another process; wait for it or stop it, "
            "or choose another folder with --out"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
