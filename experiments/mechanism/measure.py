"""The measurements of one network, in float64, since slow directions are as small as roundings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import jaxgru
from experiments.common.model import Network, read_out
from experiments.common.task import Example
from experiments.copy_task.task import SYMBOLS
from jaxgru import diagnostics
from jaxgru.diagnostics import FixedPoints, LyapunovSpectrum
from jaxgru.diagnostics.gates import gate_values

DRAWN = 60  # states of a run to keep for the picture
EVERY = 4  # steps between two orthonormalizations
GRADIENTS = 3  # examples whose gradient is followed through the gap


class Moment(NamedTuple):
    """The measurements of one network in the gap, with H units and N examples."""

    half_life: np.ndarray  # [H], steps
    log_gain: np.ndarray  # [GRADIENTS, gap + 1], the last state of the gap to the one `lag` before
    spectrum: LyapunovSpectrum
    points: FixedPoints
    states: np.ndarray  # [N, DRAWN, H], through the gap
    times: np.ndarray  # [K], steps of the gap, evenly spaced in their logarithms
    speed: np.ndarray  # [N, K], |h_t - h_{t-1}| at these times
    time_constants: np.ndarray  # [N, H], of the Jacobian at the last state of the gap, in steps
    distance: np.ndarray  # [N], from the last state of the gap to the nearest point, NaN without
    recall: float  # after the gap
    recall_at_points: float  # from the nearest point instead, as after an infinite gap


def measure(network: Network, examples: Example, length: int, probes: int, steps: int) -> Moment:
    """Measure a network on examples `[N, T+20, ...]` with this gap. All are float64."""
    cell = network.cell
    end = length + SYMBOLS - 1  # the end of the gap; the cue comes next
    xs = examples.xs[:, :end]
    blank = xs[0, SYMBOLS]
    stride = max(1, (end - SYMBOLS) // DRAWN)
    times = np.unique(np.geomspace(1, end - SYMBOLS - 1, 40).round().astype(int))

    def one(xs: Array) -> tuple[Array, ...]:
        last, hs = jaxgru.scan(cell, xs)
        held = hs[SYMBOLS - 1 :]  # the first is the state after the symbols
        speed = jnp.linalg.norm(held[times + 1] - held[times], axis=1)
        z = gate_values(cell, xs)["z"][SYMBOLS:]
        return last, held[0], held[1::stride][:DRAWN], z.mean(0), speed

    def gain(carry: Array, xs: Array) -> Array:
        return diagnostics.memory_gradient(
            cell, xs[SYMBOLS:], carry, probes=probes, key=key
        ).log_gain

    key = jax.random.key(0)
    last, first, states, z, speed = jax.jit(lambda xs: lax.map(one, xs))(xs)
    log_gain = jax.vmap(gain)(first[:GRADIENTS], xs[:GRADIENTS])
    gap = jnp.broadcast_to(blank, (min(steps, end - SYMBOLS), len(blank)))
    spectrum = diagnostics.lyapunov_spectrum(cell, gap, first[0], every=EVERY)
    points = diagnostics.fixed_points(cell, blank, key, last, starts=len(last), spread=0)

    def recall(carry: Array) -> float:
        def share(carry: Array, example: Example) -> Array:
            outputs = read_out(network, jaxgru.scan(cell, example.xs[end:], carry)[1])
            asked = example.targets[-SYMBOLS:]
            return (outputs[-SYMBOLS:].argmax(1) == asked).mean()

        return float(jax.vmap(share)(carry, examples).mean())

    rest = np.concatenate([points.fixed.points, points.slow.points])
    distance, recall_at_points = np.full(len(last), np.nan), np.nan
    if len(rest):
        away = np.linalg.norm(np.asarray(last)[:, None] - rest[None], axis=2)
        distance, recall_at_points = away.min(1), recall(jnp.asarray(rest[away.argmin(1)]))
    jacobians = jax.vmap(lambda h: diagnostics.state_jacobians(cell, blank[None], h)[0])(last)
    half_life = np.log(0.5) / np.log1p(-np.asarray(z).mean(0))
    return Moment(
        half_life, np.asarray(log_gain), jax.tree.map(np.asarray, spectrum), points,
        np.asarray(states), times, np.asarray(speed), time_constants(np.asarray(jacobians)),
        distance, recall(last), recall_at_points,
    )  # fmt: skip


def time_constants(jacobians: np.ndarray) -> np.ndarray:
    """`[N, H, H] -> [N, H]`: -1 / log |eigenvalue|, or infinity if a direction does not decay."""
    modulus = -np.sort(-np.abs(np.linalg.eigvals(jacobians)), axis=1)
    with np.errstate(divide="ignore"):
        return np.where(modulus < 1, -1 / np.log(modulus), np.inf)
