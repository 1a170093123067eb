"""The settings of the adding problem, and those of published rows."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments.common.settings import Preset, Settings, require

# Bai, Kolter & Koltun 2018: a GRU of about 70,000 parameters.
_BAI: dict[str, Any] = {"length": 600, "layout": "anywhere", "cell": "gru-reset-after"}
_BAI |= {"hidden_size": 150, "batch_size": 32, "learning_rate": (1e-3,), "updates": 20_000}
# Rusch et al. 2022 (LEM): 128 units, batches of 50, 30,000 updates.
_LEM: dict[str, Any] = {"cell": "gru-reset-after", "hidden_size": 128, "updates": 30_000}

# The rows of experiments/results.
_SEEDS = {"seeds": (0, 1, 2)}
_LONG: dict[str, Any] = _SEEDS | {"hidden_size": 64, "schedule": "exponential", "half_life": 3000}
_LONG |= {"floor": 0.02, "updates": 20_000, "curriculum": 3.0, "eval_every": 100}
_600 = _LONG | {"length": 600, "pass_loss": 5e-5, "solved": 5e-5}
_FAR = _LONG | {"pass_loss": 3e-4, "solved": 1e-4}
# The LSTM and the plain RNN have about as many weights as the GRU.
_LSTM = {"cell": "lstm", "hidden_size": 55}
_ELMAN = {"cell": "elman", "hidden_size": 112}
_ANYWHERE = {"layout": "anywhere"}
_DIRECT = {"curriculum": 0.0, "updates": 4000}

PRESETS = {
    "halves-100": Preset("T=100, GRU of 32", _SEEDS),
    "halves-100-min-gru": Preset("minimal GRU of 32", _SEEDS | {"cell": "min-gru"}),
    "halves-600": Preset("T=600, GRU of 64", _600),
    "halves-600-lstm": Preset("LSTM of 55", _600 | _LSTM),
    "halves-600-elman": Preset("plain RNN of 112", _600 | _ELMAN),
    "anywhere-600": Preset("both markers anywhere", _600 | _ANYWHERE),
    "halves-2000": Preset("T=2,000, GRU of 64", _FAR | {"length": 2000}),
    "halves-2000-lstm": Preset("LSTM of 55", _FAR | _LSTM | {"length": 2000}),
    "halves-2000-direct": Preset("no curriculum", _FAR | _DIRECT | {"length": 2000}),
    "halves-2000-elman": Preset("plain RNN of 112", _FAR | _ELMAN | {"length": 2000}),
    "anywhere-2000": Preset(
        "T=2,000, GRU of 64, marks anywhere", _FAR | _ANYWHERE | {"length": 2000}
    ),
    "halves-5000": Preset("T=5,000, GRU of 64", _FAR | {"length": 5000}),
    "halves-5000-direct": Preset("no curriculum", _FAR | _DIRECT | {"length": 5000}),
    "halves-5000-elman": Preset("plain RNN of 112", _FAR | _ELMAN | {"length": 5000}),
    "anywhere-5000": Preset(
        "T=5,000, GRU of 64, marks anywhere", _FAR | _ANYWHERE | {"length": 5000}
    ),
    "halves-10000": Preset("T=10,000, GRU of 64", _FAR | {"length": 10_000}),
    "halves-10000-elman": Preset("plain RNN of 112", _FAR | _ELMAN | {"length": 10_000}),
    "bai-600": Preset(
        "as Bai et al. 2018 trained, markers anywhere, T=600", _BAI | {"solved": 0.0}
    ),
    "lem-2000": Preset(
        "128 units and 30,000 updates, as Rusch et al. 2022", _LEM | {"length": 2000, "solved": 0.0}
    ),
    "lem-5000": Preset("the same, T=5,000", _LEM | {"length": 5000, "solved": 0.0}),
    "lem-10000": Preset("the same, T=10,000", _LEM | {"length": 10_000, "solved": 0.0}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddingSettings(Settings):
    """Train recurrent networks on the adding problem until they solve it."""

    layout: Literal["halves", "anywhere"] = "halves"
    """One marker in each half, or both anywhere."""
    pass_loss: float = 1e-2
    """Training loss that makes the length grow."""
    solved: float = 1e-3
    """Stop below this test loss; 0: never."""
    out: Path = Path("runs/adding_task")
    """Folder of the run; _NAME is added with a preset."""


def check(settings: AddingSettings) -> None:
    require(settings, "length", settings.length >= 2, "at least 2")
    require(settings, "pass_loss", settings.pass_loss > 0, "positive")
    require(settings, "solved", settings.solved >= 0, "at least 0")
