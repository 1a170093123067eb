"""The settings of the copy task, and those of published rows."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments.common.settings import Preset, Settings, require

# As published: training has no curriculum, uses the mean loss over all steps, and takes the whole
# budget.
_DIRECT: dict[str, Any] = {"curriculum": 0, "train_on": "mean", "schedule": "constant"}
_DIRECT |= {"optimizer": "rmsprop", "solved_recall": 0.0, "updates": 50_000}
# Tallec & Ollivier 2018: no clipping, gate biases for memories of up to 1.5 T steps.
_CHRONO = _DIRECT | {"cell": "lstm", "learning_rate": (1e-3,), "clip_norm": 0.0}
# Bai, Kolter & Koltun 2018: a GRU of about 16,000 parameters, trained as their TCN.
_BAI = _DIRECT | {"layout": "tcn", "cell": "gru-reset-after", "hidden_size": 70, "chrono": 0.0}

# The rows of experiments/results.
_ROW: dict[str, Any] = {"seeds": (0, 1, 2), "half_life": 1000}
_200 = _ROW | {"length": 200, "updates": 10_000}
_1000 = _ROW | {"length": 1000, "solved_loss": 3.5e-5}
_ABLATION = _1000 | {"updates": 8000}
_FRESH = {"seeds": tuple(range(10, 20))}
_NO_CURRICULUM = {"curriculum": 0.0, "half_life": 3000, "updates": 1500}
_NO_CURRICULUM |= {"test_examples": 500, "eval_every": 50}
_FAR: dict[str, Any] = {"length": 100_000, "checkpoint": 1000, "curriculum": 10.0}
_FAR |= {"pass_nats": 0.1, "test_examples": 100, "eval_every": 10}
_TCN: dict[str, Any] = {"length": 1000, "layout": "tcn", "slope": 2.0, "chrono": 30.0}
_TCN |= {"batch_size": 64, "updates": 30_000, "seeds": (0, 1, 2), "solved_loss": 3.5e-5}

PRESETS = {
    "urnn-200": Preset("T=200, GRU of 128", _200),
    "urnn-200-all-symbols": Preset("all ten symbols from the start", _200 | {"first_symbols": 10}),
    "urnn-200-direct": Preset("no curriculum", _200 | {"curriculum": 0.0, "updates": 2000}),
    "urnn-200-no-chrono": Preset("no chrono biases", _200 | {"chrono": 0.0}),
    "urnn-200-reset-after": Preset(
        "reset gate after the product", _200 | {"cell": "gru-reset-after"}
    ),
    "urnn-200-uniform": Preset("uniform weights, as in torch", _200 | {"init": "torch"}),
    "urnn-1000": Preset("T=1,000, GRU of 128", _1000),
    "urnn-1000-fresh-seeds": Preset("ten other seeds", _1000 | _FRESH),
    "urnn-1000-direct": Preset("no curriculum", _1000 | _NO_CURRICULUM),
    "urnn-1000-lstm": Preset("LSTM of 110", _1000 | {"cell": "lstm", "hidden_size": 110}),
    "urnn-1000-elman": Preset(
        "plain RNN of 224", _1000 | {"cell": "elman", "hidden_size": 224, "chrono": 0.0}
    ),
    "urnn-1000-no-chrono": Preset("no chrono biases", _ABLATION | {"chrono": 0.0}),
    "urnn-1000-reset-after": Preset(
        "reset gate after the product", _ABLATION | {"cell": "gru-reset-after"}
    ),
    "urnn-1000-uniform": Preset("uniform weights, as in torch", _ABLATION | {"init": "torch"}),
    "urnn-1000-no-clipping": Preset("no clipping", _ABLATION | {"clip_norm": 0.0}),
    "urnn-1000-constant-rate": Preset(
        "constant learning rate", _ABLATION | {"schedule": "constant"}
    ),
    "urnn-1000-all-symbols": Preset(
        "all ten symbols from the start", _ABLATION | {"first_symbols": 10}
    ),
    "urnn-10000": Preset("T=10,000, GRU of 128", _ROW | {"length": 10_000}),
    "urnn-100000": Preset("T=100,000, GRU of 128", _ROW | _FAR),
    "tcn-1000": Preset("tcn layout, T=1,000, GRU of 128", _TCN),
    "tcn-1000-lstm": Preset("LSTM of 111", _TCN | {"cell": "lstm", "hidden_size": 111}),
    "tcn-1000-elman": Preset(
        "plain RNN of 220", _TCN | {"cell": "elman", "hidden_size": 220, "chrono": 0.0}
    ),
    "tcn-10000": Preset(
        "tcn layout, T=10,000, GRU of 128",
        _TCN | {"length": 10_000, "checkpoint": 100, "solved_loss": 0.0},
    ),
    "bai-1000": Preset(
        "as Bai et al. 2018 trained, tcn layout, T=1,000",
        _BAI | {"length": 1000, "learning_rate": (5e-4,)},
    ),
    "chrono-500": Preset(
        "as Tallec & Ollivier 2018, LSTM, T=500", _CHRONO | {"length": 500, "chrono": 750.0}
    ),
    "chrono-2000": Preset(
        "as Tallec & Ollivier 2018, LSTM, T=2,000", _CHRONO | {"length": 2000, "chrono": 3000.0}
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopySettings(Settings):
    """Train recurrent networks to recall ten symbols after a gap."""

    layout: Literal["urnn", "tcn", "hippo", "selective", "variable"] = "urnn"
    """How the sequence is laid out."""
    hidden_size: int = 128
    """H, units of a layer."""
    slope: float = 0
    """tcn: slope of thresholds spread over the symbols; 0: off."""
    chrono: float = 100
    """Gate biases for memories of up to this many steps; 0: off."""
    schedule: Literal["constant", "cosine", "exponential"] = "exponential"
    """To 0 over the budget, or by half every --half-life."""
    batch_size: int = 32
    """Fresh examples of an update."""
    updates: int = 20_000
    """The budget of each replica."""
    train_on: Literal["sum", "mean"] = "sum"
    """Sum or mean of the losses of all steps; the mean is reported."""
    curriculum: float = 3
    """Begin short, then grow by this factor; 0: off."""
    first_symbols: int = 1
    """Symbols at the start of the curriculum; 10: all."""
    pass_symbols: float = 0.97
    """Recall that brings in the next symbol."""
    pass_nats: float = 0.03
    """Loss summed over a sequence that makes the gap grow."""
    solved_recall: float = 0.999
    """Stop above this test recall; 0: no condition."""
    solved_loss: float = 0
    """And below this test loss; 0: no condition."""
    eval_every: int = 20
    """Updates between two evaluations."""
    out: Path = Path("runs/copy_task")
    """Folder of the run; _NAME is added with a preset."""


def check(settings: CopySettings) -> None:
    for name in ("pass_symbols", "solved_recall"):
        require(settings, name, 0 <= getattr(settings, name) < 1, "in [0, 1)")
    require(settings, "pass_nats", settings.pass_nats > 0, "positive")
    require(settings, "solved_loss", settings.solved_loss >= 0, "at least 0")
    fits = settings.layout == "tcn" and settings.layers == 1
    require(settings, "slope", settings.slope == 0 or fits, "0 except with --layout tcn, one layer")
    require(settings, "slope", 0 <= settings.slope < 100, "in [0, 100)")
    require(settings, "first_symbols", 1 <= settings.first_symbols <= 10, "1 to 10")
