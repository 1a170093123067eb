"""What a study needs to know of its task: examples, what is measured on them, the way there."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from matplotlib.figure import Figure

from experiments.common.model import Network
from experiments.common.settings import Settings, UsageError


class Example(NamedTuple):
    """One sequence.

    The framework reads `xs` alone, `[T, I]`, which is what the network sees. It hands `targets` and
    `weights` unchanged to the task's own `measure` and `picture`. Each is an array, or a pytree of
    arrays, of any dtype; its shape depends on the length alone. The copy task has int32 targets
    `[T]` and the adding task float32 targets `[T]`. Both have weights `[T]`: the share of each step
    in the loss.
    """

    xs: Array
    targets: Any
    weights: Any = ()


class Stage(NamedTuple):
    """How hard the examples are. Without a curriculum there is one stage, the task itself."""

    length: int
    level: int = 0
    """How hard they are apart from their length; the copy task counts its symbols."""
    decay: bool = True
    """Whether the learning rate's schedule moves on."""


def lengths(first: int, last: int, factor: float) -> tuple[Stage, ...]:
    """Stages from the first length to the last by a factor; the last alone if the factor is 0."""
    if not factor or last <= first:
        return (Stage(last),)
    grown = [first]
    while grown[-1] < last:
        grown.append(min(last, math.ceil(grown[-1] * factor)))
    return tuple(map(Stage, grown))


class Mark(NamedTuple):
    """A measure on one side of a value: what it takes to be solved, or to be worth counting to."""

    measure: str
    value: float
    above: bool = False

    def reached(self, means: dict[str, float]) -> bool:
        if self.above:
            return means[self.measure] > self.value
        return means[self.measure] < self.value

    def __str__(self) -> str:
        return f"{self.measure} {'>' if self.above else '<'} {self.value:g}"


def _as_drawn(key: Array, network: Network) -> Network:
    return network


def _as_measured(length: int) -> float:
    return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task. The fields without a default are what every task must say of itself."""

    name: str
    """What the report calls it."""
    title: str
    """That of a run and of its pictures."""
    input_size: int
    """I of the inputs `[T, I]`."""
    output_size: int
    """O of the outputs `[T, O]` that a linear readout makes of the states."""
    stages: tuple[Stage, ...]
    """The curriculum; the last is the task itself."""
    sampler: Callable[[int], Callable[[Array, Array], Example]]
    """`length -> (key, level) -> one example`, in jax.numpy; the level is an int32 scalar."""
    measures: tuple[str, ...]
    """The names of what is measured; the loss, called "loss", is one of them."""
    measure: Callable[[Array, Example], dict[str, Array]]
    """`(outputs [T, O], example) ->` a scalar for each measure."""
    passed: Callable[[Stage], Mark]
    """What the mean over training batches must reach to end a stage of the curriculum."""
    solved: tuple[Mark, ...]
    """What the test set must reach, all at once, to end the run; if empty, the budget ends it."""
    baseline: float
    """The loss of the best answer that remembers nothing."""
    chances: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """For each measure that is a share, as recall or accuracy, what guessing gives."""
    marks: tuple[Mark, ...] = ()
    """What is worth knowing when the test set first reached it."""
    prepare: Callable[[Array, Network], Network] = _as_drawn
    """`(key, fresh network) ->` the network to begin with: other weights of the same shapes."""
    loss_scale: Callable[[int], float] = _as_measured
    """`length ->` by what the loss is multiplied before it is differentiated."""
    picture: Callable[[Figure, Example, Array, str], None] | None = None
    """Draws examples, leaves `[N, ...]`, and the network's outputs `[N, T, O]`, under a title."""


def check_task(task: Task, settings: Settings) -> None:
    """Raise `UsageError` where the parts of a task do not fit together. Computes shapes alone."""

    def need(holds: bool, what: str, expected: str, got: Any) -> None:
        if not holds:
            raise UsageError(f"task {task.name}: {what} must be {expected}, got {got}")

    stage = task.stages[0]
    example = jax.eval_shape(task.sampler(stage.length), jax.random.key(0), jnp.int32(stage.level))
    need(isinstance(example, Example), "what the sampler returns", "an Example", example)
    shape, size = jnp.shape(example.xs), task.input_size
    fits = len(shape) == 2 and shape[1] == size
    need(fits, "xs of the sampler", f"of shape [T, {size}], by input_size", list(shape))

    need("loss" in task.measures, "measures", "names with loss among them", task.measures)
    dtype = jnp.promote_types(settings.dtype, jnp.float32)
    outputs = jax.ShapeDtypeStruct((shape[0], task.output_size), dtype)
    found = jax.eval_shape(task.measure, outputs, example)
    names = " and ".join(task.measures)
    need(set(found) == set(task.measures), "what measure returns", f"named {names}", [*found])
    for name, value in found.items():
        need(value.shape == (), f"{name} of measure", "a scalar", f"shape {list(value.shape)}")
    marked = [mark.measure for mark in (*task.solved, *task.marks, task.passed(stage))]
    for name in (*marked, *task.chances):
        need(name in task.measures, "a measure of passed, solved, marks and chances", names, name)
