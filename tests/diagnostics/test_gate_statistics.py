"""Statistics of gates over a data set, against steps and quantiles in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
from cases import HIDDEN, INPUT, VALUE_TOL, assert_close, draw, draw_carry, draw_xs, only
from jaxgru.diagnostics import gate_statistics
from jaxgru.diagnostics.gates import LIMIT, WIDTH, gate_values

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
GATED = {"gru": {"r": 0, "z": 1}, "gru_after": {"r": 0, "z": 1}, "lstm": {"i": 0, "f": 1, "o": 3}}
STREAM = [(20, INPUT), (5, 30, INPUT), (1, 7, INPUT)]


def data(shapes=STREAM):
    rng = np.random.default_rng(0)
    return [jnp.asarray(2 * rng.standard_normal(shape)) for shape in shapes]


def by_steps(params, kind, xs, carry=None):
    """The gates {name: [T, H]}, from the equations in NumPy."""
    carry = oracle.initial_carry(params) if carry is None else carry
    out = {name: [] for name in GATED[kind]}
    for x in xs:
        h = oracle.f64(carry[0] if kind == "lstm" else carry)
        for name, k in GATED[kind].items():
            a = oracle.f64(x) @ oracle.f64(params.w_ih)[:, k] + h @ oracle.f64(params.w_hh)[:, k]
            out[name].append(oracle.sigmoid(a + oracle.f64(params.b)[k]))
        carry, _ = oracle.step(params, carry, x)
    return {name: np.array(rows) for name, rows in out.items()}


@pytest.mark.parametrize("kind", only(["lstm"], GATED))
def test_values_are_those_of_the_equations(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    found = gate_values(params, xs, carry)
    expected = by_steps(params, kind, xs, carry)
    assert list(found) == list(expected)
    assert_close(found, expected, TOL)
    batch = jnp.stack([xs, draw_xs(seed=7)])
    both = jax.vmap(gate_values, in_axes=(None, 0))(params, batch)
    assert_close({name: gate[1] for name, gate in both.items()}, gate_values(params, batch[1]), TOL)


@pytest.mark.parametrize("kind", only(["lstm"], GATED))
def test_statistics_are_those_of_all_steps_together(kind):
    params, levels = draw(kind), (0.0, 0.1, 0.5, 0.9, 1.0)
    sequences = [xs for item in data() for xs in item.reshape(-1, *item.shape[-2:])]
    values = [by_steps(params, kind, xs) for xs in sequences]
    found = gate_statistics(params, iter(data()), quantiles=levels, saturated=(0.3, 0.6))
    assert found.steps == 20 + 150 + 7
    assert list(found.gates) == list(GATED[kind])
    for name, gate in found.gates.items():
        all_steps = np.concatenate([each[name] for each in values])
        assert_close(gate.mean, all_steps.mean(0), TOL)
        assert_close(gate.low, (all_steps < 0.3).mean(0), TOL)
        assert_close(gate.high, (all_steps > 0.6).mean(0), TOL)
        assert gate.low.max() > 0
        assert gate.high.max() > 0
        exact = np.quantile(all_steps, levels, axis=0, method="inverted_cdf")
        logit = np.log(gate.quantiles) - np.log1p(-gate.quantiles)
        # The tolerance is half a bin and the rounding of its edge.
        assert_close(logit, np.log(exact) - np.log1p(-exact), WIDTH / 2 + 1e-9)
    kept = found.gates["f"].mean if kind == "lstm" else 1 - found.gates["z"].mean
    assert_close(found.half_life, np.log(0.5) / np.log(kept), TOL)


def test_half_life_is_known_where_the_gate_is_constant():
    """With z = 1 - 2^(-1 / 50) at all steps, half of the state is left after 50 steps."""
    z = 1 - 0.5 ** (1 / 50)
    params = draw("gru")
    b = params.b.at[1].set(np.log(z / (1 - z)))
    params = dataclasses.replace(
        params, b=b, w_ih=params.w_ih.at[:, 1].set(0), w_hh=params.w_hh.at[:, 1].set(0)
    )
    found = gate_statistics(params, data())
    assert_close(found.half_life, np.full(HIDDEN, 50.0), 1e-9)  # z = 0.014 has 16 digits
    assert_close(found.gates["z"].low, np.ones(HIDDEN), 0)
    assert np.all(np.abs(found.gates["z"].quantiles / z - 1) < 0.01)  # the docstring promises this


def test_gates_that_are_shut_or_open_for_good():
    params = draw("gru")
    params = dataclasses.replace(params, b=params.b.at[0].set(1e3).at[1].set(-1e3))
    found = gate_statistics(params, data())
    assert np.all(np.isinf(found.half_life))
    assert np.all(found.gates["r"].high == 1)
    edge = 1 / (1 + np.exp(LIMIT - WIDTH / 2))
    assert_close(found.gates["z"].quantiles, np.full((5, HIDDEN), edge), TOL)
    assert_close(found.gates["r"].quantiles, np.full((5, HIDDEN), 1 - edge), TOL)


def test_an_array_is_an_iterable_of_its_sequences():
    params = draw("gru")
    (batch,) = data([(4, 9, INPUT)])
    one, other = gate_statistics(params, batch), gate_statistics(params, [batch])
    assert one.steps == other.steps == 36
    assert_close(one.gates["z"], other.gates["z"], TOL)
    assert_close(one.gates["r"], other.gates["r"], TOL)
