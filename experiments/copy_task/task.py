"""The copy task (Hochreiter & Schmidhuber 1997) in its published layouts, as samplers of examples.

K = 10 symbols out of 8 come first, and a gap of about T steps follows. Then the network has to
recall the symbols in order. Symbols are 1 to 8, the blank is 0, and the cue is 9. A sequence has
T+20 steps.

| layout | inputs | the network reads | loss |
| --- | --- | --- | --- |
| urnn | symbols, T-1 blanks, a cue, 10 blanks | one-hot of 10 | mean over all steps |
| tcn | symbols, T-1 blanks, 11 cues | the number itself | mean over all steps |
| hippo | symbols, T blanks, 10 cues | one-hot of 10 | mean over the 10 recalled |
| selective | as hippo, the symbols anywhere in the first T+10 steps | as hippo | as hippo |
| variable | as urnn, a gap drawn from 1 to T, blanks to the end | as urnn | as urnn |

The network answers with one of 9 classes, or 10 in the tcn layout, as published.

Sources: urnn: Arjovsky, Shah & Bengio 2016, arXiv:1511.06464; tcn: Bai, Kolter & Koltun 2018,
arXiv:1803.01271; hippo: Gu et al. 2020, arXiv:2008.07669; selective: Gu & Dao 2023,
arXiv:2312.00752; variable: Tallec & Ollivier 2018, arXiv:1804.11188.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

import jaxgru
from experiments.common.model import Network
from experiments.common.task import Example, Mark, Stage, Task, lengths
from experiments.copy_task.picture import rasters
from experiments.copy_task.settings import CopySettings

SYMBOLS = 10  # K, the symbols to remember
KINDS = 8
CUE = 9
FIRST_LENGTH = 10  # the first length of a curriculum

Sample = Callable[[Array, int, Array], Example]  # key, length, symbols


def sample_urnn(key: Array, length: int, symbols: Array) -> Example:
    drawn = _symbols(key, symbols)
    ids = _blanks(length).at[:SYMBOLS].set(drawn).at[length + SYMBOLS - 1].set(CUE)
    return _loss_everywhere(_one_hot(ids), _recall_last(length, drawn))


def sample_tcn(key: Array, length: int, symbols: Array) -> Example:
    drawn = _symbols(key, symbols)
    ids = _blanks(length).at[:SYMBOLS].set(drawn).at[length + SYMBOLS - 1 :].set(CUE)
    return _loss_everywhere(ids[:, None].astype(jnp.float32), _recall_last(length, drawn))


def sample_hippo(key: Array, length: int, symbols: Array) -> Example:
    drawn = _symbols(key, symbols)
    ids = _blanks(length).at[:SYMBOLS].set(drawn).at[-SYMBOLS:].set(CUE)
    return _loss_of_recall(_one_hot(ids), _recall_last(length, drawn))


def sample_selective(key: Array, length: int, symbols: Array) -> Example:
    symbols_key, places_key = jax.random.split(key)
    drawn = _symbols(symbols_key, symbols)
    steps = jnp.arange(length + SYMBOLS, dtype=jnp.int32)
    places = jnp.sort(jax.random.permutation(places_key, steps)[:SYMBOLS])
    ids = _blanks(length).at[places].set(drawn).at[-SYMBOLS:].set(CUE)
    return _loss_of_recall(_one_hot(ids), _recall_last(length, drawn))


def sample_variable(key: Array, length: int, symbols: Array) -> Example:
    symbols_key, gap_key = jax.random.split(key)
    drawn = _symbols(symbols_key, symbols)
    gap = jax.random.randint(gap_key, (), 1, length + 1, jnp.int32)
    ids = _blanks(length).at[:SYMBOLS].set(drawn).at[gap + SYMBOLS - 1].set(CUE)
    recall = gap + SYMBOLS + jnp.arange(SYMBOLS, dtype=jnp.int32)
    return _loss_everywhere(_one_hot(ids), _blanks(length).at[recall].set(drawn))


def _symbols(key: Array, count: Array) -> Array:
    """Draw `[10]`, where the first `count` are symbols and the rest are blanks."""
    drawn = jax.random.randint(key, (SYMBOLS,), 1, KINDS + 1, jnp.int32)
    return jnp.where(jnp.arange(SYMBOLS, dtype=jnp.int32) < count, drawn, 0)


def _blanks(length: int) -> Array:
    return jnp.zeros(length + 2 * SYMBOLS, jnp.int32)


def _recall_last(length: int, drawn: Array) -> Array:
    return _blanks(length).at[-SYMBOLS:].set(drawn)


def _one_hot(ids: Array) -> Array:
    return jax.nn.one_hot(ids, CUE + 1, dtype=jnp.float32)


def _loss_everywhere(xs: Array, targets: Array) -> Example:
    return Example(xs, targets, jnp.full(targets.shape, 1 / targets.size, jnp.float32))


def _loss_of_recall(xs: Array, targets: Array) -> Example:
    asked = (targets > 0).astype(jnp.float32)
    return Example(xs, targets, asked / asked.sum())


class Layout(NamedTuple):
    sample: Sample
    input_size: int
    output_size: int
    recall_only: bool


LAYOUTS = {
    "urnn": Layout(sample_urnn, CUE + 1, KINDS + 1, False),
    "tcn": Layout(sample_tcn, 1, KINDS + 2, False),
    "hippo": Layout(sample_hippo, CUE + 1, KINDS + 1, True),
    "selective": Layout(sample_selective, CUE + 1, KINDS + 1, True),
    "variable": Layout(sample_variable, CUE + 1, KINDS + 1, False),
}


def measure(outputs: Array, example: Example) -> dict[str, Array]:
    """Cross-entropy of the logits `[T+20, classes]`, and the share of symbols recalled."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, example.targets)
    # Without the barrier the compiler spends seconds on folding constants as long as the sequences.
    weights = lax.optimization_barrier(example.weights.astype(losses.dtype))
    asked = example.targets > 0
    right = (lax.argmax(outputs, 1, jnp.int32) == example.targets) & asked
    return {
        "loss": (losses * weights).sum(),
        "recall": right.sum(dtype=jnp.float32) / asked.sum(dtype=jnp.float32),
    }


def baseline(layout: str, length: int) -> float:
    """The loss of a network that knows when to recall, and guesses the symbols."""
    if LAYOUTS[layout].recall_only:
        return math.log(KINDS)
    return SYMBOLS * math.log(KINDS) / (length + 2 * SYMBOLS)


def stages(settings: CopySettings) -> tuple[Stage, ...]:
    """The stages. A curriculum first adds symbols at a short gap, and then lengthens the gap.

    The learning rate's schedule advances only once all symbols are there.
    """
    grown = lengths(FIRST_LENGTH, settings.length, settings.curriculum)
    full = tuple(stage._replace(level=SYMBOLS) for stage in grown)
    if not settings.curriculum or settings.first_symbols == SYMBOLS:
        return full
    counts = range(settings.first_symbols, SYMBOLS)
    few = [Stage(grown[0].length, level=count, decay=False) for count in counts]
    return (*few, *full)


def spread_thresholds(key: Array, network: Network, slope: float) -> Network:
    """Begin with a thermometer code for the one number from 0 to 9 that the tcn layout feeds.

        candidate of unit i = tanh(slope * (x - c_i) + ...),    c_i ~ U[0, 9]

    or its negative, depending on the sign that was drawn. All other input weights are divided by 9,
    so that the gates do not begin saturated.
    """
    cell: Any = network.cell
    only = {jaxgru.ElmanParams: ..., jaxgru.MinGRUParams: 1}
    candidate = only.get(type(cell), 2)  # the one gate, the second or the third
    signs = slope * jnp.sign(cell.w_ih[0, candidate])
    c = jax.random.uniform(key, signs.shape, signs.dtype, 0, CUE)
    cell = dataclasses.replace(
        cell,
        w_ih=(cell.w_ih / CUE).at[0, candidate].set(signs),
        b=cell.b.at[candidate].set(-signs * c),
    )
    return dataclasses.replace(network, cell=cell)


def make_task(settings: CopySettings) -> Task:
    layout = LAYOUTS[settings.layout]

    def sampler(length: int) -> Callable[[Array, Array], Example]:
        return lambda key, symbols: layout.sample(key, length, symbols)

    def counted(length: int) -> int:
        return SYMBOLS if layout.recall_only else length + 2 * SYMBOLS

    def passed(stage: Stage) -> Mark:
        if stage.level < SYMBOLS:
            return Mark("recall", settings.pass_symbols, above=True)
        return Mark("loss", settings.pass_nats / counted(stage.length))

    def loss_scale(length: int) -> float:
        return float(counted(length)) if settings.train_on == "sum" else 1.0

    solved = (
        Mark("recall", settings.solved_recall, above=True),
        Mark("loss", settings.solved_loss),
    )
    task = Task(
        name="copy_task",
        title=f"Copy task, T={settings.length:,}, {settings.layout}, {settings.network()}",
        input_size=layout.input_size,
        output_size=layout.output_size,
        stages=stages(settings),
        sampler=sampler,
        measures=("loss", "recall"),
        measure=measure,
        passed=passed,
        solved=tuple(mark for mark in solved if mark.value),
        marks=tuple(Mark("recall", share, above=True) for share in (0.5, 0.99, 0.999)),
        baseline=baseline(settings.layout, settings.length),
        chances={"recall": 1 / KINDS},
        loss_scale=loss_scale,
        picture=rasters,
    )
    if not settings.slope:
        return task
    return dataclasses.replace(task, prepare=partial(spread_thresholds, slope=settings.slope))
