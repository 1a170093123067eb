"""The settings of the gradient-flow study."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.adding_task.settings import AddingSettings
from experiments.common import settings as common
from experiments.common.settings import require

Cell = Literal["elman", "lstm", "gru"]
CELLS: tuple[Cell, ...] = ("elman", "lstm", "gru")
FIRST_LAG = 10  # a straight line is fitted to the log gain from this lag to the last


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientFlowSettings:
    """Measure how far gradients reach in plain RNN, LSTM and GRU.

    The study measures each cell at initialization and after training on the adding problem: the
    gradients of the last state and of the loss at earlier states, Lyapunov exponents, and gates. It
    also measures a fresh GRU for several update biases, down to values at which it hardly forgets.
    It writes figures, and the numbers in each of them.

    Exit code: 0 done, 2 wrong usage, 4 cannot write, 130 interrupted.
    """

    length: int = 100
    """T, time steps of a sequence, and the longest lag."""
    hidden_size: int = 32
    """H, units of each cell."""
    init: Literal["orthogonal", "torch", "keras", "flax", "haiku"] = "orthogonal"
    """How the weights are drawn."""
    biases: Annotated[tuple[float, ...], tyro.conf.arg(metavar="B ...")] = (
        2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8,
    )  # fmt: skip
    """Update biases of the fresh GRU."""
    updates: int = 2000
    """Training updates, the same for all cells."""
    batch_size: int = 50
    """Fresh examples of an update."""
    learning_rate: float = 1e-2
    """Learning rate of Adam; falls to 0 as a cosine."""
    examples: int = 50
    """Held-out sequences to measure on."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SEED ...")] = (0, 1, 2)
    """Seeds of weights and training data."""
    out: Path = Path("runs/gradient_flow")
    """Folder to write into; a used one is refused."""

    def adding(self, cell: Cell) -> AddingSettings:
        """How a cell is trained."""
        return AddingSettings(
            length=self.length,
            cell=cell,
            hidden_size=self.hidden_size,
            init=self.init,
            learning_rate=(self.learning_rate,),
            schedule="cosine",
            updates=self.updates,
            batch_size=self.batch_size,
            eval_every=min(100, self.updates),
            seeds=self.seeds,
        )


def check(settings: GradientFlowSettings) -> None:
    """Raise `UsageError` for a value that makes no sense."""
    shortest = FIRST_LAG + 2
    require(settings, "length", settings.length >= shortest, f"at least {shortest}")
    common.check(settings.adding("gru"))
    require(settings, "examples", settings.examples >= 1, "at least 1")
    biases = settings.biases
    require(settings, "biases", bool(biases) and all(map(math.isfinite, biases)), "finite")
    require(settings, "biases", len(set(biases)) == len(biases), "different from each other")
