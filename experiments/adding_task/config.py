"""What can be set from the command line."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.common.run import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a recurrent network on the adding problem until it is solved.

    Exit code: 0 solved, 1 not solved, 2 wrong usage, 3 loss not finite.
    """

    length: int = 100
    """Time steps of a sequence."""
    layout: Literal["halves", "anywhere"] = "halves"
    """One marker in each half, or both anywhere."""
    cell: Literal["gru", "gru-reset-after", "lstm", "elman"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 32
    """Units of the cell."""
    learning_rate: float = 1e-2
    """Step size of Adam."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""
    batch_size: int = 50
    """Fresh examples of an update."""
    updates: int = 5000
    """The budget: stop here, solved or not."""
    eval_every: int = 50
    """Updates between two evaluations."""
    seed: int = 0
    """Of weights and training data; the test set is fixed."""
    out: Path = Path("runs/adding_task")
    """New folder for the records and the picture."""


def check(config: Config) -> None:
    """Raise `UsageError` for a value that makes no sense."""
    least = {"length": 2, "hidden_size": 1, "batch_size": 1, "updates": 1, "eval_every": 1}
    for name, bound in least.items():
        _require(config, name, getattr(config, name) >= bound, f"at least {bound}")
    for name in ("learning_rate", "clip_norm"):
        _require(config, name, 0 < getattr(config, name) < float("inf"), "positive and finite")
    _require(config, "seed", 0 <= config.seed < 2**32, "in [0, 2**32)")


def _require(config: Config, name: str, holds: bool, expected: str) -> None:
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise UsageError(f"{flag} must be {expected}, got {getattr(config, name)}")
