"""The settings of the adding problem, and those of published rows."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.common.settings import PRESET, Settings, require

_LEM: dict[str, Any] = {
    "cell": "gru-reset-after",
    "hidden_size": 128,
    "updates": 30_000,
    "solved": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    # Bai, Kolter & Koltun 2018: a GRU of about 70,000 parameters.
    "bai-600": {
        "length": 600,
        "layout": "anywhere",
        "cell": "gru-reset-after",
        "hidden_size": 150,
        "batch_size": 32,
        "learning_rate": (1e-3,),
        "updates": 20_000,
        "solved": 0.0,
    },
    # Rusch et al. 2022 (LEM): 128 units, batches of 50, 30,000 updates.
    "lem-2000": _LEM | {"length": 2000},
    "lem-5000": _LEM | {"length": 5000},
    "lem-10000": _LEM | {"length": 10_000},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddingSettings(Settings):
    """Train recurrent networks on the adding problem until they solve it.

    Exit code: 0 solved, 1 not solved, 2 wrong usage, 3 loss not finite, 4 cannot
    write, 5 another process lost, 130 interrupted.
    """

    preset: Annotated[Literal["", "bai-600", "lem-2000", "lem-5000", "lem-10000"], PRESET] = ""
    """Of settings: bai-600, lem-2000, lem-5000, lem-10000."""
    layout: Literal["halves", "anywhere"] = "halves"
    """One marker in each half, or both anywhere."""
    pass_loss: float = 1e-2
    """Training loss that makes the length grow."""
    solved: float = 1e-3
    """Stop below this test loss; 0: never."""
    out: Path = Path("runs/adding_task")
    """Folder of the run; a used one is refused."""


def check(settings: AddingSettings) -> None:
    require(settings, "length", settings.length >= 2, "at least 2")
    require(settings, "pass_loss", settings.pass_loss > 0, "positive")
    require(settings, "solved", settings.solved >= 0, "at least 0")
