"""The command line of a study: settings, presets, and runs that are gone on with."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro
from rich.console import Console

from experiments.common.folder import LOCK, NotWritten, alone, writing
from experiments.common.metrics import UNFINISHED, read_run
from experiments.common.processes import from_first, is_first, join, leave, together
from experiments.common.programs import Devices, devices_of
from experiments.common.run import EXIT_CODES, run
from experiments.common.settings import (
    PLACE,
    Settings,
    UsageError,
    as_json,
    check,
    flag,
    from_json,
)
from experiments.common.task import Task

S = TypeVar("S", bound=Settings)


def main(
    kind: type[S],
    presets: Mapping[str, Mapping[str, Any]],
    check_own: Callable[[S], None],
    make_task: Callable[[S], Task],
    args: Sequence[str] | None,
) -> int:
    """Parse, check, run; returns the exit code. A wrong value is one line of error."""
    prog = f"python -m experiments.{kind.__module__.split('.')[-2]}"

    def parse(default: S) -> S:
        return tyro.cli(kind, prog=prog, args=args, default=default)

    try:
        settings = parse(kind())
        if settings.resume:
            settings = _resumed(kind, settings, parse)
        elif settings.preset:
            settings = parse(kind(preset=settings.preset, **presets[settings.preset]))
        check(settings)
        check_own(settings)
        if settings.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        join(settings)
        with together(_say), ExitStack() as held:
            devices = devices_of(settings)
            from_first(lambda: _take_folder(settings.out, held, new=not settings.resume))
            return _run(kind, make_task(settings), settings, devices)
    except UsageError as error:
        if is_first():
            _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:  # before there was anything to record
        return EXIT_CODES["interrupted"]


def in_one_go(out: Path, check: Callable[[], None], run: Callable[[Console], int]) -> int:
    """Check and run a study that is not gone on with; returns the exit code."""
    try:
        check()
        with ExitStack() as held, writing(out):
            _take_folder(out, held, new=True)
            return run(Console(highlight=False))
    except (UsageError, NotWritten) as error:
        return refused(error)
    except KeyboardInterrupt:
        return EXIT_CODES["interrupted"]


def refused(error: UsageError | NotWritten) -> int:
    """Say why; returns the exit code."""
    _say(f"error: {error}")
    return 2 if isinstance(error, UsageError) else EXIT_CODES["not written"]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _take_folder(out: Path, held: ExitStack, *, new: bool) -> None:
    """For this study alone, until `held` is left."""
    if new and not os.path.exists(out / LOCK):
        make_folder(out)
    held.enter_context(alone(out))
    if new:  # another study may have used it before the lock was ours
        make_folder(out)


def _run(kind: type[S], task: Task, settings: S, devices: Devices) -> int:
    console = Console(highlight=False, quiet=not is_first())
    try:
        return run(console, task, settings, kind(), devices)
    except NotWritten as error:
        how = "again"
        if (settings.out / "metrics.jsonl").exists():
            how = f"go on: python -m experiments.{task.name} --out {settings.out} --resume"
        _say(f"error: {error}. What was saved before is whole; make room, then {how}")
        return leave(EXIT_CODES["not written"])


def _resumed(kind: type[S], asked: S, parse: Callable[[S], S]) -> S:
    """The settings of the run in --out. Flags may repeat them, not change them."""
    saved = saved_settings(kind, asked.out)
    place = {name: getattr(kind(), name) for name in PLACE}
    settings = parse(dataclasses.replace(saved, **place))
    for name, value in as_json(settings).items():
        if name not in PLACE and value != as_json(saved)[name]:
            raise UsageError(
                f"{flag(name)} is {as_json(saved)[name]} in {asked.out}, got {value}; "
                "a run goes on as it began"
            )
    return settings


def saved_settings(kind: type[S], out: Path) -> S:
    """The settings of the run in a folder. Raises: UsageError."""
    path = out / "metrics.jsonl"
    try:
        return from_json(kind, read_run(path).header["settings"])
    except OSError as error:
        raise UsageError(f"no run in {out}: {path.name}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"no run in {out}: {error}") from error


def make_folder(out: Path) -> None:
    """Create the folder of a run. One that holds anything is refused: no run mixes with another."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(path.name not in (UNFINISHED, LOCK) for path in out.iterdir()):
            raise UsageError(
                f"{out} is in use; go on with its run by --resume, choose another folder with "
                "--out, or remove it"
            )
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {out}: permission denied")
