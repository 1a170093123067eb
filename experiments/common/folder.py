"""The folder of a run. One process at a time writes to it, and errors in writing are reported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.common.settings import UsageError

LOCK = "lock"


class NotWritten(Exception):
    """Raised for a full disk and similar failures. Files saved before are intact."""


@contextmanager
def writing(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn errors of the system, and the others given, into a `NotWritten` of one line."""
    try:
        yield
    except (OSError, *errors) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NotWritten(f"cannot write {path}: {reason.splitlines()[0][:200]}") from error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other processes from writing to the folder.

    The operating system releases the lock when the process ends, however it ends. The file of the
    lock stays.

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
