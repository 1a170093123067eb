"""A study as the user sees it: header, progress, records, checkpoints, pictures, verdict."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.common import pictures
from experiments.common.checkpoints import Checkpoints
from experiments.common.folder import writing
from experiments.common.interrupts import interrupts
from experiments.common.machine import surroundings
from experiments.common.metrics import Line, Writer, begin, read_run
from experiments.common.model import parameter_count
from experiments.common.processes import any_of, is_first
from experiments.common.programs import Devices, Programs
from experiments.common.progress import progress
from experiments.common.settings import Settings, as_json, command_line, replicas_of
from experiments.common.task import Mark, Task
from experiments.common.training import TrainState, train_init

EXIT_CODES = {"solved": 0, "not solved": 1, "not finite": 3, "not written": 4, "interrupted": 130}
RUNNING = "running"
HEADER = 1  # lines of the record before the first evaluation


class Study(NamedTuple):
    """The current state of a run. A replica is one seed with one learning rate."""

    states: TrainState  # NumPy arrays [replicas, ...]
    stages: tuple[int, ...]  # of each replica, an index into the task's
    updates: tuple[int, ...]
    verdicts: tuple[str, ...]
    chunks: int
    lines: int  # of the record that belong to this
    seconds: float  # of training
    compiling: float  # seconds


class Group(NamedTuple):
    """The replicas to train next, all at one stage, and the number of updates."""

    members: tuple[int, ...]
    stage: int
    updates: int


def run(
    console: Console,
    task: Task,
    settings: Settings,
    defaults: Settings,
    devices: Devices,
    module: str,
) -> int:
    """Train every replica until it is solved or its budget is spent, and return the exit code.

    `module` is the command that was called, without its flags.
    """
    study = _start(task, settings)
    header = _header(task, settings, defaults, study, len(devices), module)
    _print_header(console, header)

    path = settings.out / "metrics.jsonl"
    if not settings.resume and is_first():
        begin(path, header)
    checkpoints = Checkpoints(settings.out / "checkpoints")
    if settings.resume:
        study = _restore(console, checkpoints, study)
    saved = study.chunks
    writer = Writer(path if is_first() else None, keep=study.lines)

    programs = Programs(task, settings, devices)
    interrupted = False
    last_save = time.monotonic()
    count = len(study.verdicts)
    told = progress(console, settings.updates, count, task.baseline, task.chances)
    try:
        with interrupts() as wish, told as show:
            while not interrupted and (group := _next_group(study, settings)) is not None:
                study, lines = _advance(console, writer, programs, task, study, group)
                for line in lines:
                    show(line)
                due = time.monotonic() - last_save >= settings.save_every
                interrupted, due = any_of((wish.asked, due))
                if due:
                    _save(checkpoints, study)
                    saved, last_save = study.chunks, time.monotonic()
    except KeyboardInterrupt:
        interrupted = True
    finally:  # also after any error, and if another process was lost
        if study.chunks > saved:
            _save(checkpoints, study)
        checkpoints.close()

    if interrupted and _next_group(study, settings) is not None:
        writer.close()
        console.print(
            "Interrupted; everything is saved. To continue: "
            f"{header['module']} --out {settings.out} --resume",
            soft_wrap=True,
        )
        return EXIT_CODES["interrupted"]
    if is_first():
        _conclude(console, task, settings, writer, study, header)
    return max(EXIT_CODES[verdict] for verdict in study.verdicts)


def _conclude(
    console: Console, task: Task, settings: Settings, writer: Writer, study: Study, header: Line
) -> None:
    """Print and record the verdicts, and draw the pictures."""
    path = settings.out / "metrics.jsonl"
    results = _results(task, study, read_run(path).evals)
    for result in results:
        writer.write("result", **result)
    writer.close()
    _print_results(console, header, results)
    with writing(settings.out):
        written = pictures.draw(task, settings, read_run(path), study.states.network)
    console.print(f"Wrote metrics.jsonl, {', '.join(written)} to {settings.out}", soft_wrap=True)


def _start(task: Task, settings: Settings) -> Study:
    replicas = replicas_of(settings)
    seeds = jnp.array([seed for seed, _ in replicas], jnp.uint32)
    rates = jnp.array([rate for _, rate in replicas], jnp.float32)
    init = jax.jit(jax.vmap(lambda seed, rate: train_init(task, settings, seed, rate)))
    states = jax.device_get(init(seeds, rates))
    zeros = (0,) * len(replicas)
    return Study(states, zeros, zeros, (RUNNING,) * len(replicas), 0, HEADER, 0.0, 0.0)


def _next_group(study: Study, settings: Settings) -> Group | None:
    """The replicas at the lowest stage. The others wait, so that short sequences stay cheap.

    The results of a replica do not depend on the others. It takes `eval_every` updates at a time
    until its budget is spent, whichever other replicas are in the group.
    """
    active = [r for r, verdict in enumerate(study.verdicts) if verdict == RUNNING]
    if not active:
        return None
    stage = min(study.stages[r] for r in active)
    left = {
        r: min(settings.eval_every, settings.updates - study.updates[r])
        for r in active
        if study.stages[r] == stage
    }
    count = max(left.values())
    return Group(tuple(r for r in left if left[r] == count), stage, count)


def _advance(
    console: Console,
    writer: Writer,
    programs: Programs,
    task: Task,
    study: Study,
    group: Group,
) -> tuple[Study, list[Line]]:
    """Run one chunk of updates of one group, evaluate it, and record the results."""
    settings, stage = programs.settings, task.stages[group.stage]
    compiled = programs.seconds
    start = time.perf_counter()
    before = _take(study.states, group.members)
    states, trained = programs.train(before, group.updates, stage)
    last = group.stage + 1 == len(task.stages)
    spent = any(study.updates[r] + group.updates == settings.updates for r in group.members)
    # In a curriculum the task itself is evaluated only once training has reached it, or ends.
    tested = programs.evaluate(states, task.stages[-1]) if last or spent else {}
    compiling = programs.seconds - compiled
    seconds = study.seconds + time.perf_counter() - start - compiling

    stages, updates = list(study.stages), list(study.updates)
    verdicts = list(study.verdicts)
    fine, lines = [], []
    for k, r in enumerate(group.members):
        train = {name: float(values[k]) for name, values in trained.means.items()}
        test = {name: float(values[k]) for name, values in tested.items()}
        broken = int(trained.broken[k])
        if broken:
            verdicts[r] = "not finite"
            console.print(
                f"Replica {r}: the loss, its gradient or a weight was not finite at update "
                f"{broken:,}, of {stage.length:,} steps; its state before update "
                f"{updates[r] + 1:,} is kept. A lower --learning-rate or --clip-norm may help.",
                soft_wrap=True,
            )
            continue
        fine.append(k)
        updates[r] += group.updates
        line = {"replica": r, "update": updates[r], "length": stage.length}
        if stage.level:
            line["level"] = stage.level
        line |= {f"train_{name}": value for name, value in train.items()}
        line |= {f"test_{name}": value for name, value in test.items()}
        line["seconds"] = round(seconds, 3)
        lines.append(line)
        writer.write("eval", **line)
        if test and task.solved and all(mark.reached(test) for mark in task.solved):
            verdicts[r] = "solved"
        elif updates[r] == settings.updates:
            verdicts[r] = "not solved"
        elif not last and task.passed(stage).reached(train):
            stages[r] += 1

    kept = _take(states, tuple(fine))
    study = Study(
        states=_put(study.states, tuple(group.members[k] for k in fine), kept),
        stages=tuple(stages),
        updates=tuple(updates),
        verdicts=tuple(verdicts),
        chunks=study.chunks + 1,
        lines=writer.lines,
        seconds=seconds,
        compiling=study.compiling + compiling,
    )
    return study, lines


def _take(states: TrainState, members: tuple[int, ...]) -> TrainState:
    return jax.tree.map(lambda leaf: leaf[list(members)], states)


def _put(states: TrainState, members: tuple[int, ...], new: TrainState) -> TrainState:
    def put(leaf: np.ndarray, part: np.ndarray) -> np.ndarray:
        changed = leaf.copy()
        changed[list(members)] = part
        return changed

    return jax.tree.map(put, states, new)


def _save(checkpoints: Checkpoints, study: Study) -> None:
    facts = study._asdict()
    checkpoints.save(study.chunks, facts.pop("states"), facts)


def _restore(console: Console, checkpoints: Checkpoints, start: Study) -> Study:
    found = checkpoints.restore(start.states, console.print)
    if found is None:
        console.print("No checkpoint yet: starting from the first update.")
        return start
    facts = {name: found.facts[name] for name in Study._fields if name != "states"}
    for name in ("stages", "updates", "verdicts"):
        facts[name] = tuple(facts[name])
    study = Study(states=found.state, **facts)
    console.print(f"Going on after {', '.join(f'{u:,}' for u in study.updates)} updates.")
    return study


def _header(
    task: Task,
    settings: Settings,
    defaults: Settings,
    study: Study,
    devices: int,
    module: str,
) -> Line:
    network = jax.tree.map(lambda leaf: leaf[0], study.states.network)
    return {
        "task": task.name,
        "title": task.title,
        "module": module,
        "command": command_line(module, settings, defaults),
        "settings": as_json(settings),
        "replicas": [{"seed": seed, "learning_rate": rate} for seed, rate in replicas_of(settings)],
        "input_size": task.input_size,
        "output_size": task.output_size,
        "parameters": parameter_count(network),
        "baseline": task.baseline,
        "chances": dict(task.chances),
        "measures": task.measures,
        "solved": [str(mark) for mark in task.solved],
        "stages": len(task.stages),
        **surroundings(),
        "devices": devices,
        "processes": jax.process_count(),
    }


def _print_header(console: Console, header: Line) -> None:
    settings = header["settings"]
    size, updates, count = settings["batch_size"], settings["updates"], len(header["replicas"])
    seeds = " ".join(str(seed) for seed in settings["seeds"])
    rates = " ".join(f"{rate:g}" for rate in settings["learning_rate"])
    lines = {
        header["title"]: "",
        "parameters": f"{header['parameters']:,}",
        "budget": f"{updates:,} updates of {size} examples, {updates * size:,} in all, "
        + (f"for each of {count} replicas" if count > 1 else ""),
        "replicas": f"seeds {seeds}; learning rates {rates}; all in one program",
        "curriculum": f"{header['stages']} stages" if header["stages"] > 1 else "none",
        "baseline": f"loss {header['baseline']:.3g}, the best answer without memory",
        "solved": f"test {' and '.join(header['solved'])}" if header["solved"] else "not asked",
        "device": f"{header['machine']}, jax {header['jax']}",
    }
    if header["devices"] > 1:
        lines["divided by"] = f"{header['devices']} devices, processes: {header['processes']}"
    for name, text in lines.items():
        console.print(f"{name:<12}{text}".rstrip(" ,"), soft_wrap=True)


def _reached(mark: Mark, line: Line) -> bool:
    value = line.get(f"test_{mark.measure}")
    return value is not None and mark.reached({mark.measure: value})


def _results(task: Task, study: Study, evals: list[list[Line]]) -> list[Line]:
    results = []
    for r, lines in enumerate(evals):
        reached = {
            str(mark): next((line["update"] for line in lines if _reached(mark, line)), None)
            for mark in task.marks
        }
        last = lines[-1] if lines else {}
        last = {k: v for k, v in last.items() if k not in ("kind", "replica", "update")}
        results.append(
            {"replica": r, "verdict": study.verdicts[r], "update": study.updates[r]}
            | last
            | {"updates_to": reached, "compile_seconds": round(study.compiling, 1)}
        )
    return results


def _first(result: Line) -> str:
    """The update at which each mark was first reached."""
    reached = [f"{mark} at {at:,}" for mark, at in result["updates_to"].items() if at is not None]
    return f"; test {', '.join(reached)}" if reached else ""


def _print_results(console: Console, header: Line, results: list[Line]) -> None:
    for result, replica in zip(results, header["replicas"], strict=True):
        measures = [
            f"test {name} {result[f'test_{name}']:.4g}"
            for name in header["measures"]
            if result.get(f"test_{name}") is not None
        ]
        examples = result["update"] * header["settings"]["batch_size"]
        console.print(
            f"Seed {replica['seed']}, rate {replica['learning_rate']:g}: "
            f"{', '.join([result['verdict'], *measures])} after {result['update']:,} updates, "
            f"{examples:,} examples{_first(result)}.",
            soft_wrap=True,
        )
    seconds = max(result.get("seconds", 0.0) for result in results)
    compiling = max(result["compile_seconds"] for result in results)
    console.print(f"{seconds:.1f} s of training, {compiling:.1f} s of compiling.")
