"""The settings of the study, and their checks."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from experiments.common.command import saved_settings
from experiments.common.settings import UsageError, require
from experiments.copy_task.settings import CopySettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class MechanismSettings:
    """Show how a GRU that was trained on the copy task holds the symbols through the gap.

    The study measures the network at three moments: at initialization, at the end of training at
    the shortest gap, and after training. It measures the half-life of every unit, the gradient
    against lag, the Lyapunov spectrum, and the fixed points in the gap. The network of the second
    moment is trained again from the seed.

    Exit code: 0 done, 2 wrong usage, 4 cannot write, 130 interrupted.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run of the copy task with a curriculum, such as --preset urnn-10000."""
    seed: int = 0
    """Seed of the replica to measure."""
    examples: int = 32
    """Held-out examples, from which the search for fixed points starts."""
    probes: int = 16
    """Random directions that estimate the gradient against lag."""
    steps: int = 2000
    """Most steps of the gap for the Lyapunov spectrum."""
    out: Path = Path("runs/mechanism")
    """Folder to write into; a used one is refused."""


def check(settings: MechanismSettings) -> None:
    for name in ("examples", "probes", "steps"):
        require(settings, name, getattr(settings, name) >= 1, "at least 1")
    copying = saved_settings(CopySettings, settings.run)
    require(settings, "seed", settings.seed in copying.seeds, f"one of {copying.seeds}")
    fits = copying.cell in ("gru", "gru-reset-after") and copying.layers == 1
    if not (fits and copying.curriculum and copying.layout in ("urnn", "tcn", "hippo")):
        raise UsageError(
            f"the run in {settings.run} must be of one layer of GRUs with a curriculum, in a "
            f"layout with a blank gap (urnn, tcn, hippo), got {copying.layers} of {copying.cell}, "
            f"curriculum {copying.curriculum:g}, {copying.layout}"
        )
