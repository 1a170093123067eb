"""The settings of the study of rollouts."""

import dataclasses
import math
from pathlib import Path

from experiments.common.settings import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Learn a T-maze by policy gradients (A2C), acting and learning in one compiled program.

    A cue at the entrance says where to turn at the junction, which comes after a corridor of random
    length. The study trains a GRU, and also the same network with its state reset at every step.
    Without memory, a network can only reach chance, 50%.

    Exit code: 0 solved by the GRU, 1 not solved, 2 wrong usage, 4 cannot write,
    130 interrupted.
    """

    shortest: int = 5
    """Least steps from the cue to the junction."""
    longest: int = 15
    """Most steps from the cue to the junction."""
    hidden_size: int = 32
    """H, units of the GRU."""
    environments: int = 64
    """Environments side by side."""
    steps: int = 64
    """Steps of each environment between two updates."""
    updates: int = 200
    """Updates of the weights."""
    eval_every: int = 5
    """Updates between two lines of the record."""
    learning_rate: float = 5e-3
    """Learning rate of Adam."""
    discount: float = 0.99
    """Factor on a reward for each step that it comes later."""
    entropy: float = 0.003
    """Weight of the entropy bonus."""
    solved: float = 0.99
    """Share of the latest episodes that must end well."""
    seed: int = 0
    """Seed of weights, mazes and actions."""
    out: Path = Path("runs/rollout")
    """Folder of the run; a used one is refused."""


LEAST = {"shortest": 1, "hidden_size": 1, "environments": 1, "steps": 1, "updates": 1}
LEAST |= {"eval_every": 1}


def check(settings: RolloutSettings) -> None:
    """Raise `UsageError` for a value that makes no sense."""
    for name, bound in LEAST.items():
        require(settings, name, getattr(settings, name) >= bound, f"at least {bound}")
    shortest = settings.shortest
    require(settings, "longest", settings.longest >= shortest, f"at least {shortest} (--shortest)")
    rate, bonus = settings.learning_rate, settings.entropy
    require(settings, "learning_rate", 0 < rate < math.inf, "positive and finite")
    require(settings, "entropy", 0 <= bonus < math.inf, "finite and not negative")
    require(settings, "discount", 0 <= settings.discount <= 1, "in [0, 1]")
    require(settings, "solved", 0 <= settings.solved <= 1, "in [0, 1]")
    require(settings, "seed", 0 <= settings.seed < 2**32, "in [0, 2**32)")
