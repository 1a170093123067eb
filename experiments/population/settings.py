"""The settings of a population."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import tyro

from experiments.adding_task.settings import AddingSettings
from experiments.common.settings import require

RANGE = tyro.conf.arg(metavar="FROM TO")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PopulationSettings:
    """Train a GRU at every point of a grid, all in one program, and draw the map of their losses.

    The grid is over the learning rate and over the update gate's bias, which sets how long a fresh
    unit holds its state. The networks have the same weights except for that bias, and see the same
    examples of the adding problem. So any two of them differ only in their place in the grid. All
    devices that jax finds share the networks.

    Exit code: 0 done, 2 wrong usage, 4 cannot write, 130 interrupted.
    """

    rates: int = 64
    """Learning rates, evenly on a log scale."""
    rate_range: Annotated[tuple[float, float], RANGE] = (1e-4, 3.0)
    """The first and the last."""
    biases: int = 64
    """Update biases, evenly."""
    bias_range: Annotated[tuple[float, float], RANGE] = (-8.0, 4.0)
    """The first and the last."""
    length: int = 30
    """T, time steps to remember over."""
    hidden_size: int = 16
    """H, units of each network."""
    batch_size: int = 8
    """Fresh examples of an update."""
    updates: int = 300
    """Updates of every network, by Adam."""
    test_examples: int = 256
    """Held-out examples, the same for all."""
    together: int = 16
    """Networks side by side on a device: as many as its cache holds; on a GPU, all."""
    seed: int = 0
    """Seed of weights and data."""
    out: Path = Path("runs/population")
    """Folder to write into; a used one is refused."""

    @property
    def size(self) -> int:
        return self.rates * self.biases

    def adding(self) -> AddingSettings:
        """How each network is trained."""
        return AddingSettings(
            length=self.length,
            hidden_size=self.hidden_size,
            batch_size=self.batch_size,
            updates=self.updates,
            test_examples=self.test_examples,
        )


LEAST = {"rates": 1, "biases": 1, "length": 2, "hidden_size": 1, "batch_size": 1, "updates": 1}
LEAST |= {"test_examples": 1, "together": 1}


def check(settings: PopulationSettings, devices: int) -> None:
    """Raise `UsageError` for a value that makes no sense."""
    for name, bound in LEAST.items():
        require(settings, name, getattr(settings, name) >= bound, f"at least {bound}")
    low, high = settings.rate_range
    require(settings, "rate_range", 0 < low <= high < math.inf, "positive, finite and in order")
    low, high = settings.bias_range
    require(settings, "bias_range", -math.inf < low <= high < math.inf, "finite and in order")
    require(settings, "seed", 0 <= settings.seed < 2**32, "in [0, 2**32)")
    expected = f"such that --rates times --biases is a multiple of {devices}, the devices"
    require(settings, "rates", settings.size % devices == 0, expected)
