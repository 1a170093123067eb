"""What a task of one's own needs, in one import; experiments/README.md has an example."""

from experiments.common.command import main
from experiments.common.loading import load
from experiments.common.model import Network, read_out
from experiments.common.settings import Preset, Settings, UsageError, require
from experiments.common.task import Example, Mark, Stage, Task, lengths

__all__ = [
    "Example",
    "Mark",
    "Network",
    "Preset",
    "Settings",
    "Stage",
    "Task",
    "UsageError",
    "lengths",
    "load",
    "main",
    "read_out",
    "require",
]
