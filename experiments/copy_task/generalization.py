"""Recall of a trained network at gaps beyond the one that it was trained at.

`python -m experiments.copy_task.generalization --help`
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro
from matplotlib.figure import Figure

from experiments.common.command import refused, saved_settings
from experiments.common.folder import NotWritten, writing
from experiments.common.loading import all_networks
from experiments.common.plots import COLOURS
from experiments.common.settings import UsageError
from experiments.common.task import Stage
from experiments.common.training import make_evaluate
from experiments.copy_task.settings import CopySettings
from experiments.copy_task.task import SYMBOLS, make_task

Curve = dict[str, list[float]]  # for each replica, the recall at each length


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure recall at gaps that a network was not trained at.

    It writes generalization.json and generalization.png into the first folder.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs of the copy task."""
    lengths: tuple[int, ...] = (10, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
    """Gaps to measure at."""
    test_examples: int = 100
    """Held-out examples for each gap."""


def measure(out: Path, config: Config) -> Curve:
    """Recall of every replica of a run, at every length."""
    settings = saved_settings(CopySettings, out)
    task = make_task(settings)
    _, networks = all_networks(out)
    tested = dataclasses.replace(settings, test_examples=config.test_examples)
    curve: Curve = {str(seed): [] for seed in settings.seeds}
    for length in config.lengths:
        evaluate = make_evaluate(task, tested, Stage(length, SYMBOLS))
        recalls = jax.jit(jax.vmap(evaluate))(networks)["recall"]
        for seed, recall in zip(curve, recalls.tolist(), strict=True):
            curve[seed].append(recall)
        print(f"{out}: T={length:,}: {', '.join(f'{recall:.2%}' for recall in recalls.tolist())}")
    return curve


def draw(path: Path, lengths: Sequence[int], curves: dict[str, Curve], trained: list[int]) -> None:
    figure = Figure(figsize=(7.2, 3.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for k, ((name, curve), length) in enumerate(zip(curves.items(), trained, strict=True)):
        colour = COLOURS[k % len(COLOURS)]
        for r, recalls in enumerate(curve.values()):
            label = name if r == 0 else None
            axes.plot(lengths, recalls, "o-", color=colour, markersize=3, alpha=0.8, label=label)
        axes.axvline(length, color=colour, linestyle=":", linewidth=1)
    axes.axhline(1 / 8, color="0.25", linestyle="--", linewidth=1)
    axes.text(lengths[0], 0.145, "chance", fontsize=9, color="0.25")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("gap T in the test; dotted: in training")
    axes.set_ylabel("recall")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.15))
    figure.savefig(path)


def main(args: Sequence[str] | None = None) -> int:
    config = tyro.cli(Config, prog="python -m experiments.copy_task.generalization", args=args)
    if not config.runs:
        print("error: name at least one folder of a run", file=sys.stderr)
        return 2
    if not config.lengths or min(config.lengths) < 1 or config.test_examples < 1:
        print("error: --lengths and --test-examples must be at least 1", file=sys.stderr)
        return 2
    try:
        curves = {out.name: measure(out, config) for out in config.runs}
        trained = [saved_settings(CopySettings, out).length for out in config.runs]
        folder = config.runs[0]
        record = {"lengths": config.lengths, "test_examples": config.test_examples}
        text = json.dumps(record | {"recall": curves}, indent=1)
        with writing(folder):
            (folder / "generalization.json").write_text(text + "\n")
            draw(folder / "generalization.png", config.lengths, curves, trained)
    except (UsageError, NotWritten) as error:
        return refused(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
