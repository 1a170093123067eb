"""Train on the adding problem: `python -m experiments.adding_task --help`."""

import sys
from collections.abc import Sequence

from experiments.adding_task.settings import PRESETS, AddingSettings, check
from experiments.adding_task.task import make_task
from experiments.common import command


def main(args: Sequence[str] | None = None) -> int:
    return command.main(AddingSettings, make_task, args, presets=PRESETS, check=check)


if __name__ == "__main__":
    sys.exit(main())
