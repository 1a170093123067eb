"""What a study needs to know of its task: examples, what is measured on them, the way there."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

from jax import Array
from matplotlib.figure import Figure

from experiments.common.model import Network


class Example(NamedTuple):
    """One sequence: xs `[T, I]`, targets `[T]`, weights `[T]`, each step's share in the loss."""

    xs: Array
    targets: Array
    weights: Array


class Stage(NamedTuple):
    """How hard the examples are. Without a curriculum there is one stage, the task itself."""

    length: int
    symbols: int = 0  # of the copy task
    decay: bool = True  # whether the learning rate's schedule moves on


def lengths(first: int, last: int, factor: float) -> tuple[Stage, ...]:
    """From the first to the last by a factor; the last alone if the factor is 0."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    name: str
    """That of its folder in experiments/."""
    title: str
    input_size: int
    output_size: int
    prepare: Callable[[Array, Network], Network]
    """`(key, fresh network) ->` the network to begin with."""
    stages: tuple[Stage, ...]
    """The curriculum; the last is the task itself."""
    sampler: Callable[[int], Callable[[Array, Array], Example]]
    """`length -> (key, symbols) -> one example`."""
    measures: tuple[str, ...]
    """The names of what is measured; the loss is one of them."""
    measure: Callable[[Array, Example], dict[str, Array]]
    """`(outputs [T, O], example) ->` a scalar for each measure."""
    passed: Callable[[Stage], Mark]
    """What training batches must reach to end a stage of the curriculum."""
    solved: tuple[Mark, ...]
    """What the test set must reach, all at once, to end the run."""
    marks: tuple[Mark, ...]
    """What is worth knowing when it was first reached."""
    baseline: float
    """The loss of the best answer that remembers nothing."""
    loss_scale: Callable[[int], float]
    """`length ->` by what the loss is multiplied before it is differentiated."""
    picture: Callable[[Figure, Example, Array, str], None]
    """Draws examples, leaves `[N, ...]`, and the network's outputs `[N, T, O]`, under a title."""
