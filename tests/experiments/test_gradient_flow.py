"""The study of gradient flow, from the command line to its files and its numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from experiments.common.model import Network
from experiments.gradient_flow.__main__ import main
from experiments.gradient_flow.figures import _write
from experiments.gradient_flow.measure import rates, sweep

pytestmark = pytest.mark.usefixtures("optax_promotes")

SIZES = {"length": 12, "hidden-size": 3, "updates": 2, "batch-size": 2, "examples": 2}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
FIGURES = ("memory", "loss_gradient", "lyapunov", "update_bias", "jacobian_terms", "gates")


@pytest.mark.slow
def test_the_command_writes_every_figure_with_its_numbers(tmp_path, capsys):
    out = tmp_path / "run"
    args = [*TINY, "--biases", "0", "-9", "--seeds", "0", "3", "--out", str(out)]
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "GRU, trained: gain" in printed
    for name in FIGURES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    numbers = {name: json.loads((out / f"{name}.json").read_text()) for name in FIGURES}
    for when in ("fresh", "trained"):
        for cell in ("elman", "lstm", "gru"):
            assert np.shape(numbers["memory"][when][cell]["log_gain"]) == (2, 13)
            assert np.shape(numbers["loss_gradient"][when][cell]["log_norms"]) == (2, 13)
            states = 6 if cell == "lstm" else 3
            assert np.shape(numbers["lyapunov"][when][cell]["exponents"]) == (2, states)
    assert np.shape(numbers["jacobian_terms"]["shares"]) == (2, 2, 4)
    np.testing.assert_allclose(np.sum(numbers["jacobian_terms"]["shares"], -1), 1, atol=1e-5)
    # z is about sigmoid(-9) = 1.2e-4, so 12 steps forget some thousandths.
    np.testing.assert_allclose(
        np.array(numbers["update_bias"]["gain_at_last_lag"])[:, 1], 1, atol=1e-2
    )
    header = json.loads((out / "run.json").read_text())
    assert header["command"].startswith("python -m experiments.gradient_flow --length 12")
    assert header["settings"]["seeds"] == [0, 3]
    assert len(header["training"]["gru"]["test_loss"]) == 2
    assert main(args) == 2  # the folder is in use
    assert "is in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--length", "11"), ("--examples", "0"), ("--learning-rate", "0"), ("--seeds", "-1")],
)
def test_a_wrong_value_is_one_line_of_error(flag, value, tmp_path, capsys):
    assert main([flag, value, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {flag} must be ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_rates_are_those_of_an_exponential_after_its_beginning():
    lags = np.arange(41)
    logs = np.log(0.9) * lags + np.where(lags < 10, 5.0, 1.0)
    both = np.stack([logs, 2 * logs])[None]
    np.testing.assert_allclose(rates(both), [[0.9, 0.81]], rtol=1e-12)


def test_the_sweep_sets_the_update_bias_alone():
    """With zero weights a GRU forgets by sigmoid(bias) in every step, and does nothing else."""
    cell = jaxgru.gru_init(jax.random.key(0), 2, 3)
    cell = jax.tree.map(lambda leaf: jnp.zeros_like(leaf)[None], cell)
    network = Network(cell=cell, w_out=jnp.zeros((1, 3, 1)), b_out=jnp.zeros((1, 1)))
    found = sweep(network, jnp.ones((2, 15, 2), jnp.float32), (0.0, -3.0))
    kept = 1 / (1 + np.exp([0.0, -3.0]))
    expected = np.log(kept)[None, :, None] * np.arange(16)
    np.testing.assert_allclose(found.log_gain, expected, rtol=1e-4, atol=1e-6)  # float32 rounding
    np.testing.assert_allclose(found.shares, np.tile([1.0, 0, 0, 0], (1, 2, 1)), atol=1e-6)


def test_numbers_beside_a_figure_are_plain_json(tmp_path):
    _write(tmp_path / "a", (2, 2), lambda figure: None, {"x": [1.23456789, float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.23457, None]}
