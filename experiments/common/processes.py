"""Several processes, on one host or many, that run one study together.

Each runs the same program on its own devices. Only the first reads and writes the folder of the run
and prints messages. It sends its decisions to the other processes.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.common.settings import AUTO, Settings, UsageError

T = TypeVar("T")
LOST = 5  # exit code of a process that cannot continue, since it failed or another was lost


def join(settings: Settings) -> None:
    """Wait for the other processes, if this is one of several. Raises: UsageError."""
    if not settings.coordinator:
        return
    try:
        if settings.coordinator == AUTO:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                settings.coordinator, settings.processes, settings.process_id
            )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--coordinator {settings.coordinator}: {reason}") from error


@contextmanager
def together(say: Callable[[str], None]) -> Iterator[None]:
    """End a process at once if it fails or loses another.

    With an exception it would wait at its exit for the others, which wait for it.
    """
    try:
        yield
    except UsageError:  # raised in all processes
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = str(error).splitlines()[0]
            say(f"error: another process was lost, continue with --resume: {reason}")
        elif not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        leave(LOST)


def leave(code: int) -> int:
    """End at once if this is one of several processes. A single process gets the code back."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def is_first() -> bool:
    return jax.process_index() == 0


def any_of(flags: tuple[bool, ...]) -> tuple[bool, ...]:
    """For each flag, whether any process has it set."""
    if jax.process_count() == 1:
        return flags
    return tuple(multihost_utils.process_allgather(np.array(flags)).any(0).tolist())


def from_first(make: Callable[[], T]) -> T:
    """Make a JSON value in the first process, and return it in every process.

    Raises: UsageError, in all processes, if the first raised it.
    """
    if jax.process_count() == 1:
        return make()
    told: dict[str, Any] = {}
    if is_first():
        try:
            told["made"] = make()
        except UsageError as error:
            told["error"] = str(error)
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    size = int(array_from_first(np.array(text.size, np.int32)))
    text = array_from_first(text if is_first() else np.zeros(size, np.uint8))
    told = json.loads(text.tobytes())
    if "error" in told:
        raise UsageError(told["error"])
    return told["made"]


def array_from_first(tree: Any) -> Any:
    """The arrays of the first process. Those of the others give only shapes and dtypes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))
