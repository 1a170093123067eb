"""The pictures of a finished run: learning curves, answers, gates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from matplotlib.figure import Figure

from experiments.common.gates import draw_gates
from experiments.common.metrics import Run
from experiments.common.model import Network, read_out, states
from experiments.common.plots import learning_curves
from experiments.common.settings import Settings
from experiments.common.task import Example, Task
from experiments.common.training import EVAL_STEPS, test_keys

ANSWERS = 200
GATED = 16
DPI = 150


def draw(task: Task, settings: Settings, run: Run, networks: Network) -> list[str]:
    """Write the pictures into the folder of the run, and return their names.

    The answers and gates are those of the first solved replica, or else of the first replica.
    """
    verdicts = [result["verdict"] for result in run.results]
    shown = verdicts.index("solved") if "solved" in verdicts else 0
    network = jax.tree.map(lambda leaf: leaf[shown], networks)
    stage = task.stages[-1]
    sample = task.sampler(stage.length)
    keys = test_keys(min(ANSWERS, settings.test_examples))

    def answer(key: Array) -> tuple[Example, Array]:
        example = sample(key, jnp.int32(stage.level))
        hs = states(network, example.xs, settings.dtype, settings.checkpoint)
        return example, read_out(network, hs)

    size = max(1, EVAL_STEPS // stage.length)
    count = min(len(keys), max(GATED, size))
    examples, outputs = jax.jit(lambda keys: lax.map(answer, keys, batch_size=size))(keys[:count])
    gated = examples.xs[:GATED].astype(network.w_out.dtype)
    name = f"{task.title}, seed {run.header['replicas'][shown]['seed']}"

    def answers(figure: Figure) -> Any:
        return task.picture(figure, examples, outputs, name) if task.picture else False

    def curves(figure: Figure) -> Any:
        if any(run.evals):
            learning_curves(figure, [run], [task.title])

    written = [
        _picture(settings.out / "learning_curves.png", curves),
        _picture(settings.out / "answers.png", answers),
        _picture(
            settings.out / "gates.png",
            lambda f: draw_gates(f, network.cell, gated, name),
        ),
    ]
    return [path for path in written if path]


def _picture(path: Path, draw_into: Callable[[Figure], Any]) -> str:
    figure = Figure(dpi=DPI, layout="constrained")
    if draw_into(figure) is False:
        return ""
    figure.savefig(path)
    return path.name
