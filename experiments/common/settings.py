"""The settings that every study takes from the command line, and their checks."""

import dataclasses
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro


class UsageError(Exception):
    """Raised if a request cannot be fulfilled. The message says why, and what to do."""


class Preset(NamedTuple):
    """Other defaults under a name, for `--preset`."""

    about: str
    """A line for `--help`."""
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a study. Each task adds its own and sets the defaults."""

    length: int = 100
    """T, time steps to remember over."""
    cell: Literal["gru", "gru-reset-after", "lstm", "elman", "min-gru"] = "gru"
    """The recurrent cell."""
    hidden_size: int = 32
    """H, units of a layer."""
    layers: int = 1
    """Layers, each fed by the one below."""
    init: Literal["orthogonal", "torch", "keras", "flax", "haiku"] = "orthogonal"
    """How the weights are drawn."""
    chrono: float = 0
    """Gate biases for memories of up to this many steps; 0: off."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Dtype of the computation; weights are float32 or wider."""
    optimizer: Literal["adam", "nadam", "rmsprop", "sgd"] = "adam"
    """The optimizer, from Optax."""
    learning_rate: Annotated[tuple[float, ...], tyro.conf.arg(metavar="R ...")] = (1e-2,)
    """Several: one replica for each, with each seed."""
    schedule: Literal["constant", "cosine", "exponential"] = "constant"
    """To 0 over the budget, or by half every --half-life."""
    half_life: int = 2000
    """Updates; the exponential schedule ends at --floor."""
    floor: float = 0.05
    """The smallest share of the learning rate."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient; 0: off."""
    batch_size: int = 50
    """Fresh examples of an update."""
    updates: int = 5000
    """The budget of each replica."""
    curriculum: float = 0
    """Begin short, then grow by this factor; 0: off."""
    checkpoint: int = 0
    """Keep states only every so many steps; 0: all."""
    test_examples: int = 1000
    """Held out, the same for every run."""
    eval_every: int = 50
    """Updates between two evaluations."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SEED ...")] = (0,)
    """Seeds of weights and data; all in one program."""
    save_every: float = 30
    """Seconds between two checkpoints."""
    devices: int = 1
    """Devices of each process, which share replicas and batches."""
    coordinator: str = ""
    """For several processes: HOST:PORT, or auto in a cluster."""
    processes: int = 1
    """The number of processes."""
    process_id: int = 0
    """The number of this process; only 0 writes."""
    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """One of the presets, if there are any: other defaults."""
    out: Path = Path("runs")
    """Folder of the run; _NAME is added with a preset."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --out."""

    def network(self) -> str:
        layers = f"{self.layers} layers of " if self.layers > 1 else ""
        return f"{self.cell}, {layers}{self.hidden_size} units"


AUTO = "auto"
#: The settings that may change when a run is resumed.
PLACE = ("out", "resume", "devices", "coordinator", "processes", "process_id")
LEAST = {"length": 1, "hidden_size": 1, "layers": 1, "half_life": 1, "batch_size": 1, "updates": 1}
LEAST |= {"checkpoint": 0, "test_examples": 1, "eval_every": 1, "devices": 1, "processes": 1}
NOT_NEGATIVE = ("clip_norm", "save_every")


def check(settings: Settings) -> None:
    """Raise `UsageError` for a value that makes no sense."""
    for name, bound in LEAST.items():
        require(settings, name, getattr(settings, name) >= bound, f"at least {bound}")
    for name in NOT_NEGATIVE:
        value = getattr(settings, name)
        require(settings, name, 0 <= value < math.inf, "finite and not negative")
    rates, seeds = settings.learning_rate, settings.seeds
    fine = all(0 < rate < math.inf for rate in rates)
    require(settings, "learning_rate", bool(rates) and fine, "positive and finite")
    require(settings, "seeds", bool(seeds) and all(0 <= s < 2**32 for s in seeds), "in [0, 2**32)")
    require(settings, "seeds", len(set(seeds)) == len(seeds), "different from each other")
    require(settings, "floor", 0 <= settings.floor <= 1, "in [0, 1]")
    chrono, grows = settings.chrono, settings.curriculum
    require(settings, "chrono", chrono == 0 or 2 <= chrono < math.inf, "0 or at least 2")
    if settings.cell == "elman":
        require(settings, "chrono", chrono == 0, "0 with --cell elman, which has no gates")
    one, auto = not settings.coordinator, settings.coordinator == AUTO
    count = settings.processes
    require(settings, "processes", count == 1 or not one, "1 without --coordinator")
    require(settings, "processes", count == 1 or not auto, "left out with --coordinator auto")
    require(
        settings, "coordinator", count > 1 or one or auto, "given with --processes of 2 or more"
    )
    require(settings, "process_id", 0 <= settings.process_id < count, f"0 to {count - 1}")
    require(settings, "curriculum", grows == 0 or 1 < grows < math.inf, "0 or above 1")


def require(settings: Any, name: str, holds: bool, expected: str) -> None:
    if not holds:
        value = getattr(settings, name)
        text = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UsageError(f"{flag(name)} must be {expected}, got {text}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def as_json(settings: Any) -> dict[str, Any]:
    return dataclasses.asdict(settings) | {"out": str(settings.out)}


S = TypeVar("S", bound=Settings)


def from_json(kind: type[S], fields: dict[str, Any]) -> S:
    """Read settings. Raises: TypeError, KeyError if the fields are not those of this kind."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    values["out"] = Path(values["out"])
    return kind(**values)


def replicas_of(settings: Settings) -> list[tuple[int, float]]:
    """The seed and the learning rate of each replica."""
    return [(seed, rate) for rate in settings.learning_rate for seed in settings.seeds]


def command_line(module: str, settings: Any, defaults: Any) -> str:
    """The shortest command with these settings. A preset, if there is one, sets the defaults."""
    words = [module]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        chosen = field.name == "preset" and value
        if value == getattr(defaults, field.name) and not chosen:
            continue
        if field.name in ("resume", "process_id"):
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [flag(field.name), *(shlex.quote(str(item)) for item in values)]
    return " ".join(words)
