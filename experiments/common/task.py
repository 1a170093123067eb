"""The definition of a task: its examples, its measures and its curriculum."""

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

    The framework reads only `xs`, `[T, I]`, the inputs of the network. It passes `targets` and
    `weights` unchanged to the task's own `measure` and `picture`. Each is an array, or a pytree of
    arrays, of any dtype. Its shape depends only on the length. The copy task has int32 targets
    `[T]` and the adding task float32 targets `[T]`. Both have weights `[T]`: the share of each step
    in the loss.
    """

    xs: Array
    targets: Any
    weights: Any = ()


class Stage(NamedTuple):
    """The difficulty of the examples. Without a curriculum the task itself is the only stage."""

    length: int
    level: int = 0
    """The difficulty apart from the length. In the copy task it is the number of symbols."""
    decay: bool = True
    """Whether the learning rate's schedule advances."""


def lengths(first: int, last: int, factor: float) -> tuple[Stage, ...]:
    """Stages from the first length to the last by a factor. If it is 0, there is only the last."""
    if not factor or last <= first:
        return (Stage(last),)
    grown = [first]
    while grown[-1] < last:
        grown.append(min(last, math.ceil(grown[-1] * factor)))
    return tuple(map(Stage, grown))


class Mark(NamedTuple):
    """A threshold on a measure, such as the criterion for a solved task."""

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
    """A task. Every task must define the fields without a default."""

    name: str
    """The name of the task in the report."""
    title: str
    """The title of a run and of its pictures."""
    input_size: int
    """I of the inputs `[T, I]`."""
    output_size: int
    """O of the outputs `[T, O]` that a linear readout computes from the states."""
    stages: tuple[Stage, ...]
    """The curriculum. Its last stage is the task itself."""
    sampler: Callable[[int], Callable[[Array, Array], Example]]
    """`length -> (key, level) -> one example`, in jax.numpy. The level is an int32 scalar."""
    measures: tuple[str, ...]
    """The names of the measures. One of them is "loss"."""
    measure: Callable[[Array, Example], dict[str, Array]]
    """`(outputs [T, O], example) ->` a scalar for each measure."""
    passed: Callable[[Stage], Mark]
    """The mark that the mean over training batches must reach to end a stage."""
    solved: tuple[Mark, ...]
    """The marks that the test set must reach together to end the run. If empty, the budget does."""
    baseline: float
    """The loss of the best answer without memory."""
    chances: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    """The chance level of each measure that is a share, such as recall or accuracy."""
    marks: tuple[Mark, ...] = ()
    """Marks for which the result records when the test set first reached them."""
    prepare: Callable[[Array, Network], Network] = _as_drawn
    """`(key, fresh network) ->` the network to begin with, with weights of the same shapes."""
    loss_scale: Callable[[int], float] = _as_measured
    """`length ->` the factor that multiplies the loss before it is differentiated."""
    picture: Callable[[Figure, Example, Array, str], None] | None = None
    """Draw examples, leaves `[N, ...]`, and the network's outputs `[N, T, O]`, under a title."""


def check_task(task: Task, settings: Settings) -> None:
    """Raise `UsageError` if the parts of a task do not fit together. Only shapes are computed."""

    def need(holds: bool, what: str, expected: str, got: Any) -> None:
        if not holds:
            raise UsageError(f"task {task.name}: {what} must be {expected}, got {got}")

    stage = task.stages[0]
    example = jax.eval_shape(task.sampler(stage.length), jax.random.key(0), jnp.int32(stage.level))
    need(isinstance(example, Example), "what the sampler returns", "an Example", example)
    shape, size = jnp.shape(example.xs), task.input_size
    fits = len(shape) == 2 and shape[1] == size
    need(fits, "xs of the sampler", f"of shape [T, {size}], as input_size is {size}", list(shape))

    need("loss" in task.measures, "measures", "names that include loss", task.measures)
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
