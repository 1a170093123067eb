"""Networks trained per second, many in one program: `python -m benchmarks.throughput --help`."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.markdown import Markdown

from benchmarks.report import write_record
from benchmarks.timing import Times, interleave
from benchmarks.versions import versions
from experiments.adding_task.task import make_task
from experiments.common.machine import machine
from experiments.common.programs import make_mesh
from experiments.common.settings import as_json, command_line
from experiments.common.training import TrainState, make_train_chunk, train_init
from experiments.population.settings import PopulationSettings
from experiments.population.train import make_population, with_bias

#: The contestants, for the same number of networks. Networks train in groups that fit into the
#: cache, as `experiments.population` trains them; all side by side, by one vmap; or in sequence.
GROUPS, ALL, ALONE = "groups of 16", "all side by side", "one at a time"
BIAS = 0.0  # of the update gates


@dataclasses.dataclass(frozen=True)
class Config:
    """Time a population of small GRUs in one program beside the same networks one at a time.

    All networks train on the adding problem, with a few updates of each network per turn. "One at a
    time" is the same training compiled for a single network and called in a loop, for a sample of
    the networks, whose time is scaled up. The contestants take turns in one process. The times do
    not include compilation.
    """

    sizes: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (64, 512, 4096)
    """Networks of a population."""
    updates: int = 5
    """Updates of each network in a turn; a network counts as trained after them."""
    length: int = 30
    """T, time steps."""
    hidden_size: int = 16
    """H, units of a network."""
    batch_size: int = 8
    """Examples of an update."""
    sample: int = 64
    """Networks that are trained one at a time."""
    rounds: int = 5
    """Turns that every contestant gets; in a population of less than 512, more."""
    out: Path | None = None
    """File for the numbers, JSON; nothing is written if none."""


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.throughput")
    least = min(config.rounds, config.updates, config.sample, *config.sizes, 10**9)
    if least < 1 or not config.sizes:
        print("error: sizes, updates, sample and rounds must be at least 1", file=sys.stderr)
        return 2
    console = Console()
    console.print(f"{machine()}; {versions()}")
    found = {size: seconds(config, size) for size in config.sizes}
    console.print(Markdown(table(found)))
    if config.out is not None:
        record = {
            "command": command_line("python -m benchmarks.throughput", config, Config()),
            "settings": as_json(config),
            "machine": machine(),
            "versions": versions(),
            "seconds_of_a_network": {
                size: {name: times._asdict() for name, times in each.items()}
                for size, each in found.items()
            },
        }
        write_record(config.out, record)
    return 0


def settings_of(config: Config, size: int) -> PopulationSettings:
    return PopulationSettings(
        rates=size,
        biases=1,
        rate_range=(1e-3, 1e-1),
        bias_range=(BIAS, BIAS),
        length=config.length,
        hidden_size=config.hidden_size,
        batch_size=config.batch_size,
        updates=config.updates,
    )


def seconds(config: Config, size: int) -> dict[str, Times]:
    """The seconds for training one network."""
    settings = settings_of(config, size)
    sample = min(config.sample, size)
    whole = dataclasses.replace(settings, together=size)
    calls = {
        GROUPS: _together(settings),
        ALL: _together(whole),
        ALONE: _alone(settings, sample),
    }
    times = interleave(calls, config.rounds * max(1, 512 // size))
    counts = {GROUPS: size, ALL: size, ALONE: sample}
    return {name: Times(*(t / counts[name] for t in each)) for name, each in times.items()}


def table(found: dict[int, dict[str, Times]]) -> str:
    """Networks per second by medians, and the speed relative to one at a time."""
    lines = [
        f"| networks | {GROUPS}, networks/s | {ALL} | {ALONE} | ratio of groups, median (minima) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for size, each in found.items():
        rates = " | ".join(f"{1 / each[name].median:,.0f}" for name in (GROUPS, ALL, ALONE))
        ratio = each[ALONE].median / each[GROUPS].median
        least = each[ALONE].minimum / each[GROUPS].minimum
        lines.append(f"| {size:,} | {rates} | {ratio:.2f} ({least:.2f}) |")
    return "\n".join(lines) + "\n"


def _points(settings: PopulationSettings) -> np.ndarray:
    return np.geomspace(*settings.rate_range, settings.size, dtype=np.float32)


def _together(settings: PopulationSettings) -> Callable[[], Any]:
    population = make_population(settings, make_mesh(jax.devices()[:1], settings.size))
    rates = _points(settings)
    members, done = population.init(rates, np.full_like(rates, BIAS)), 0

    def call() -> Any:
        nonlocal members, done
        args = members, np.int32(done), np.int32(settings.updates)
        members, losses = population.advance(*args)
        done += settings.updates
        return jax.block_until_ready(losses)

    return call


def _alone(settings: PopulationSettings, sample: int) -> Callable[[], Any]:
    how = settings.adding()
    task = make_task(how)
    run = jax.jit(make_train_chunk(task, how, settings.length), donate_argnums=0)

    @jax.jit
    def init(rate: jax.Array) -> TrainState:
        state = train_init(task, how, jnp.uint32(settings.seed), rate)
        return state._replace(network=with_bias(state.network, jnp.float32(BIAS)))

    states = [init(rate) for rate in _points(settings)[:sample]]
    rest = [np.int32(value) for value in (settings.updates, 0, 1)]

    def call() -> Any:
        nonlocal states
        found = [run(state, *rest) for state in states]
        states = [state for state, _ in found]
        return jax.block_until_ready([chunk.means["loss"] for _, chunk in found])

    return call


if __name__ == "__main__":
    sys.exit(main())
