"""The training of a study's seeds in one program, compared with one after another."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import Row, interleave, summary, wait
from experiments.adding_task.settings import AddingSettings
from experiments.adding_task.task import make_task as adding_task
from experiments.common.task import Stage
from experiments.common.training import make_train_chunk, train_init
from experiments.copy_task.settings import CopySettings
from experiments.copy_task.task import make_task as copy_task


def seeds(rounds: int, count: int = 4) -> Iterator[Row]:
    """Time the training of several seeds of a study in one program, against one after another."""
    adding = AddingSettings()
    copying = CopySettings()
    for name, settings, task, stage, updates in (
        ("adding", adding, adding_task(adding), Stage(100), 20),
        ("copy", copying, copy_task(copying), Stage(10, level=10), 20),
        ("copy", copying, copy_task(copying), Stage(1000, level=10), 1),
    ):
        chunk = make_train_chunk(task, settings, stage.length)
        rest = [jnp.int32(value) for value in (updates, stage.level, stage.decay)]
        numbers = jnp.arange(count, dtype=jnp.uint32)
        peak = jnp.float32(settings.learning_rate[0])
        init = jax.jit(lambda seed, t=task, s=settings, p=peak: train_init(t, s, seed, p))
        many = jax.vmap(init)(numbers)
        single = [jax.tree.map(lambda a, k=k: a[k], many) for k in range(count)]
        together = jax.jit(jax.vmap(chunk, in_axes=(0, None, None, None)))
        alone = jax.jit(chunk)
        compiling: dict[str, list[float]] = {"jaxgru": [], "one after another": []}
        for _ in range(max(3, rounds // 2)):
            for who, run, states in (
                ("jaxgru", together, [many]),
                ("one after another", alone, single),
            ):
                start = time.perf_counter()
                for state in states:  # each would have its own process, so each compiles
                    jax.clear_caches()
                    run.lower(state, *rest).compile()
                compiling[who].append(time.perf_counter() - start)
        calls: dict[str, Callable[[], Any]] = {
            "jaxgru": functools.partial(wait, together, many, *rest),
            "one after another": functools.partial(
                wait, lambda run=alone, s=single, r=rest: [run(state, *r) for state in s]
            ),
        }
        case = f"{count} seeds, {name}, B={settings.batch_size} T={stage.length}"
        case += f" H={settings.hidden_size}"
        yield Row("seeds", case, f"{updates} updates", "s", interleave(calls, rounds))
        times = {who: summary(found) for who, found in compiling.items()}
        yield Row("seeds", case, "compiling", "s", times)
