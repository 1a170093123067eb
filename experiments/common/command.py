"""The command line of a study: settings, presets, and resumed runs."""

import dataclasses
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from inspect import cleandoc
from pathlib import Path
from types import MappingProxyType
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
    Preset,
    Settings,
    UsageError,
    as_json,
    flag,
    from_json,
)
from experiments.common.settings import check as check_settings
from experiments.common.task import Task, check_task

S = TypeVar("S", bound=Settings)
ANEW = "choose another folder with --out, or remove that one"
EXITS = """Exit code: 0 solved, 1 not solved, 2 wrong usage, 3 loss not finite, 4 cannot
write, 5 another process lost, 130 interrupted."""


def main(
    kind: type[S],
    make_task: Callable[[S], Task],
    args: Sequence[str] | None = None,
    *,
    presets: Mapping[str, Preset] = MappingProxyType({}),
    check: Callable[[S], None] | None = None,
) -> int:
    """Run the command of a study: parse, check and run. It returns the exit code.

    `kind` has the settings and their defaults. `check` raises `UsageError` for settings of the task
    that make no sense. A wrong value gives a single line of error.

    Raises: TypeError if `kind` itself is not a dataclass, since its own fields would not become
    flags.
    """
    if "__dataclass_fields__" not in vars(kind):
        raise TypeError(
            f"{kind.__name__} needs @dataclasses.dataclass(frozen=True, kw_only=True), so that its "
            "fields become flags"
        )
    module = module_of(make_task)
    description = f"{cleandoc(kind.__doc__ or '')}\n\n{EXITS}{_listed(presets)}"

    def parse(default: S) -> S:
        return tyro.cli(kind, prog=module, args=args, default=default, description=description)

    try:
        settings = parse(kind())
        defaults = _defaults(kind, presets, settings.preset)
        if settings.preset:
            settings = parse(defaults)
        if settings.resume:
            settings = _resumed(kind, settings, parse)
            defaults = _defaults(kind, presets, settings.preset)
        check_settings(settings)
        if check:
            check(settings)
        if settings.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        join(settings)  # before anything is computed
        with together(_say), ExitStack() as held:
            task, devices = make_task(settings), devices_of(settings)
            check_task(task, settings)
            new = not settings.resume
            from_first(lambda: _take_folder(settings.out, held, new=new, repeated=True))
            return _run(task, settings, defaults, devices, module)
    except UsageError as error:
        if is_first():
            _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:  # there was nothing to record yet
        return EXIT_CODES["interrupted"]


def module_of(function: Callable[..., Any]) -> str:
    """The command that runs the module of a function, or the package around it."""
    name = function.__module__
    if name == "__main__":
        spec = sys.modules[name].__spec__
        if spec is None:  # run as python FILE
            return f"python {shlex.quote(sys.argv[0])}"
        return f"python -m {spec.name.removesuffix('.__main__')}"
    package = name.rpartition(".")[0]
    runs = package in sys.modules and importlib.util.find_spec(f"{package}.__main__")
    return f"python -m {package if runs else name}"


def _defaults(kind: type[S], presets: Mapping[str, Preset], name: str) -> S:
    """The default settings, or those of a preset, with its own folder. Raises: UsageError."""
    plain = kind()
    if not name:
        return plain
    if name not in presets:
        known = f"one of {', '.join(presets)}" if presets else "left out, for there are none"
        raise UsageError(f"--preset must be {known}, got {name!r}")
    out = plain.out.with_name(f"{plain.out.name}_{name}")
    values: dict[str, Any] = {"out": out, **presets[name].settings, "preset": name}
    return kind(**values)


def _listed(presets: Mapping[str, Preset]) -> str:
    if not presets:
        return ""
    width = max(map(len, presets)) + 2
    lines = [f"\n- {name:<{width}}{preset.about}" for name, preset in presets.items()]
    return f"\n\nPresets, whose settings other flags change:{''.join(lines)}"


def in_one_go(out: Path, check: Callable[[], None], run: Callable[[Console], int]) -> int:
    """Check and run a study that cannot be resumed. It returns the exit code."""
    try:
        check()
        with ExitStack() as held, writing(out):
            _take_folder(out, held, new=True, repeated=False)
            return run(Console(highlight=False))
    except (UsageError, NotWritten) as error:
        return refused(error)
    except KeyboardInterrupt:
        return EXIT_CODES["interrupted"]


def refused(error: UsageError | NotWritten) -> int:
    """Print the error, and return the exit code."""
    _say(f"error: {error}")
    return 2 if isinstance(error, UsageError) else EXIT_CODES["not written"]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _take_folder(out: Path, held: ExitStack, *, new: bool, repeated: bool) -> None:
    """Lock the folder until `held` is left. `repeated`: whether the study can be resumed."""
    if new and not os.path.exists(out / LOCK):
        make_folder(out, repeated=repeated)
    held.enter_context(alone(out))
    if new:  # another study may have used it before we held the lock
        make_folder(out, repeated=repeated)


def _run(task: Task, settings: S, defaults: S, devices: Devices, module: str) -> int:
    console = Console(highlight=False, quiet=not is_first())
    try:
        return run(console, task, settings, defaults, devices, module)
    except NotWritten as error:
        how = "again"
        if (settings.out / "metrics.jsonl").exists():
            how = f"continue: {module} --out {settings.out} --resume"
        _say(f"error: {error}. What was saved before is intact; make room, then {how}")
        return leave(EXIT_CODES["not written"])


def _resumed(kind: type[S], asked: S, parse: Callable[[S], S]) -> S:
    """The settings of the run in --out. Flags may repeat them, but not change them."""
    saved = saved_settings(kind, asked.out)
    place = {name: getattr(kind(), name) for name in PLACE} | {"out": asked.out}
    settings = parse(dataclasses.replace(saved, **place))
    for name, value in as_json(settings).items():
        if name not in PLACE and value != as_json(saved)[name]:
            raise UsageError(
                f"{flag(name)} is {as_json(saved)[name]} in {asked.out}, got {value}; "
                "a run keeps its settings"
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


def make_folder(out: Path, *, repeated: bool = False) -> None:
    """Create the folder of a run. Refuse one with contents, so that runs do not mix."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(path.name not in (UNFINISHED, LOCK) for path in out.iterdir()):
            raise UsageError(_in_use(out) if repeated else f"{out} is in use; {ANEW}")
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {out}: permission denied")


def _in_use(out: Path) -> str:
    """A message that says what a folder contains and what to do."""
    try:
        found = read_run(out / "metrics.jsonl")
    except (OSError, ValueError):
        return f"{out} is in use, but not by a run; {ANEW}"
    if not found.results:
        return f"{out} is in use by an unfinished run; continue it with --resume, or {ANEW}"
    verdicts = [result["verdict"] for result in found.results]
    told = ", ".join(f"{name}: {verdicts.count(name)}" for name in dict.fromkeys(verdicts))
    return (
        f"the run in {out} is finished ({told}); look at it with python -m experiments.report "
        f"{out}. To run anew, {ANEW}"
    )
