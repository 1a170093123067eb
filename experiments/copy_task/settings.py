"""The settings of the copy task, and those of published rows."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from experiments.common.settings import PRESET, Settings, require

# Without a curriculum, on the mean over all steps, for the whole budget, as published.
_DIRECT: dict[str, Any] = {"curriculum": 0, "train_on": "mean", "schedule": "constant"}
_DIRECT |= {"optimizer": "rmsprop", "solved_recall": 0.0, "updates": 50_000}
# Tallec & Ollivier 2018: no clipping, gate biases for memories of up to 1.5 T steps.
_CHRONO = _DIRECT | {"cell": "lstm", "learning_rate": (1e-3,), "clip_norm": 0.0}
PRESETS: dict[str, dict[str, Any]] = {
    # Bai, Kolter & Koltun 2018: a GRU of about 16,000 parameters, trained as their TCN.
    "bai-1000": _DIRECT
    | {
        "length": 1000,
        "layout": "tcn",
        "cell": "gru-reset-after",
        "hidden_size": 70,
        "chrono": 0.0,
        "learning_rate": (5e-4,),
    },
    "chrono-500": _CHRONO | {"length": 500, "chrono": 750.0},
    "chrono-2000": _CHRONO | {"length": 2000, "chrono": 3000.0},
    # What solves the tcn layout here.
    "tcn": {"layout": "tcn", "slope": 2.0, "chrono": 30.0, "batch_size": 64, "updates": 30_000},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopySettings(Settings):
    """Train recurrent networks to recall ten symbols after a gap.

    Exit code: 0 solved, 1 not solved, 2 wrong usage, 3 loss not finite, 4 cannot
    write, 5 another process lost, 130 interrupted.
    """

    preset: Annotated[Literal["", "bai-1000", "chrono-500", "chrono-2000", "tcn"], PRESET] = ""
    """Of settings: bai-1000, chrono-500, chrono-2000, tcn."""
    layout: Literal["urnn", "tcn", "hippo", "selective", "variable"] = "urnn"
    """How the sequence is laid out."""
    hidden_size: int = 128
    """H, units of a layer."""
    slope: float = 0
    """tcn: of thresholds spread over the symbols; 0: off."""
    chrono: float = 100
    """Gate biases for memories of up to so many steps; 0: off."""
    schedule: Literal["constant", "cosine", "exponential"] = "exponential"
    """To 0 over the budget, or by half every --half-life."""
    batch_size: int = 32
    """Fresh examples of an update."""
    updates: int = 20_000
    """The budget of each replica."""
    train_on: Literal["sum", "mean"] = "sum"
    """Of the losses of all steps; the mean is reported."""
    curriculum: float = 3
    """Begin short, then grow by this factor; 0: off."""
    first_symbols: int = 1
    """Symbols at first in the curriculum; 10: all."""
    pass_symbols: float = 0.97
    """Recall that brings in the next symbol."""
    pass_nats: float = 0.03
    """Loss summed over a sequence that makes the gap grow."""
    solved_recall: float = 0.999
    """Stop above this test recall; 0: ask none."""
    solved_loss: float = 0
    """And below this test loss; 0: ask none."""
    eval_every: int = 20
    """Updates between two evaluations."""
    out: Path = Path("runs/copy_task")
    """Folder of the run; a used one is refused."""


def check(settings: CopySettings) -> None:
    for name in ("pass_symbols", "solved_recall"):
        require(settings, name, 0 <= getattr(settings, name) < 1, "in [0, 1)")
    require(settings, "pass_nats", settings.pass_nats > 0, "positive")
    require(settings, "solved_loss", settings.solved_loss >= 0, "at least 0")
    fits = settings.layout == "tcn" and settings.layers == 1
    require(settings, "slope", settings.slope == 0 or fits, "0 but with --layout tcn, one layer")
    require(settings, "slope", 0 <= settings.slope < 100, "in [0, 100)")
    require(settings, "first_symbols", 1 <= settings.first_symbols <= 10, "1 to 10")
