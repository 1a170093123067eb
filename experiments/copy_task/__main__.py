"""Train on the copy task: `python -m experiments.copy_task --help`."""

import sys
from collections.abc import Sequence

from experiments.common import command
from experiments.copy_task.settings import PRESETS, CopySettings, check
from experiments.copy_task.task import make_task


def main(args: Sequence[str] | None = None) -> int:
    return command.main(CopySettings, make_task, args, presets=PRESETS, check=check)


if __name__ == "__main__":
    sys.exit(main())
