"""The figures show the data that they are given."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxgru
from cases import draw, draw_xs
from jaxgru import diagnostics
from jaxgru.diagnostics import plots

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def axes():
    figure = Figure(layout="constrained")
    yield figure.subplots()
    figure.draw_without_rendering()  # drawing must not raise or warn


def heights(axes):
    """The labelled lines by name."""
    lines = axes.get_legend_handles_labels()
    return {name: np.asarray(line.get_ydata()) for line, name in zip(*lines, strict=True)}


def has_labels(axes):
    return bool(axes.get_xlabel()) and bool(axes.get_ylabel())


def test_the_package_does_not_need_matplotlib():
    code = "import sys, jaxgru; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_gradient(axes):
    params = draw("gru")
    batch = jnp.stack([draw_xs(seed=seed) for seed in range(3)])
    logs = jax.vmap(diagnostics.memory_gradient, in_axes=(None, 0))(params, batch).log_gain
    assert plots.memory_gradient(axes, {"three": logs, "one": logs[0]}) is axes
    found = heights(axes)
    np.testing.assert_allclose(found["three"], np.exp(np.median(logs, 0)))
    np.testing.assert_allclose(found["one"], np.exp(logs[0]))
    (band,) = axes.collections
    np.testing.assert_allclose(band.get_paths()[0].get_extents().ymin, np.exp(logs).min())
    assert axes.get_yscale() == "log"
    assert has_labels(axes)


def test_what_has_vanished_is_left_out(axes):
    logs = np.array([0.0, -1000.0, -np.inf])  # exp is 0, which a log scale cannot show
    plots.memory_gradient(axes, {"a": logs, "b": logs})
    assert np.isfinite(axes.get_ylim()).all()


def test_gradient_norms(axes):
    norms = diagnostics.gradient_norms(lambda hs: hs[-1].sum(), draw("lstm"), draw_xs())
    plots.gradient_norms(axes, {"a": norms, "b": 2 * norms})
    np.testing.assert_allclose(heights(axes)["b"], 2 * norms)
    assert has_labels(axes)


def test_singular_values(axes):
    found = diagnostics.memory_gradient(draw("gru"), draw_xs(), singular_values=True)
    plots.singular_values(axes, found.log_singular_values)
    np.testing.assert_allclose(heights(axes)["largest"], np.exp(found.log_singular_values[:, 0]))
    assert has_labels(axes)


def test_jacobian_terms(axes):
    shares = diagnostics.gru_jacobian_terms(draw("gru"), draw_xs()).shares()
    plots.jacobian_terms(axes, shares)
    found = heights(axes)
    assert list(found) == ["leak", "candidate", "reset", "update"]
    np.testing.assert_allclose(np.stack(list(found.values()), 1), shares)
    assert axes.get_lines()[0].get_xdata()[0] == 1


def test_lyapunov_spectrum(axes):
    spectrum = diagnostics.lyapunov_spectrum(draw("gru"), draw_xs(60))
    plots.lyapunov_spectrum(axes, {"a": spectrum, "b": spectrum})
    np.testing.assert_allclose(heights(axes)["a"], spectrum.exponents)
    low = axes.collections[0].get_paths()[0].get_extents().ymin
    np.testing.assert_allclose(low, (spectrum.exponents - 2 * spectrum.errors).min())


@pytest.mark.parametrize("hidden", [1, 4])
def test_fixed_points_lie_where_states_do(axes, hidden):
    params = draw("gru", hidden=hidden)
    found = diagnostics.fixed_points(params, jnp.zeros(3), jax.random.key(0), starts=16)
    hs = jaxgru.scan(params, draw_xs(30))[1]
    plots.fixed_points(axes, found, hs[None])
    (run,) = (line for line in axes.get_lines() if len(line.get_xdata()) == 30)
    # The two directions are orthogonal, so distances cannot grow. With one unit they stay the same.
    flat = np.stack(run.get_data(), 1)
    ratio = np.linalg.norm(flat[0] - flat[-1]) / np.linalg.norm(hs[0] - hs[-1])
    assert ratio <= 1 + 1e-12
    if hidden == 1:
        assert ratio > 1 - 1e-12
    assert "component 1" in axes.get_xlabel()


def test_eigenvalues(axes):
    found = diagnostics.fixed_points(draw("gru"), jnp.zeros(3), jax.random.key(0), starts=16)
    plots.eigenvalues(axes, found.fixed)
    drawn = axes.get_lines()[-1].get_xydata()
    expected = found.fixed.eigenvalues[found.fixed.stable].ravel()
    np.testing.assert_allclose(drawn, np.stack([expected.real, expected.imag], 1))


def test_gates(axes):
    statistics = diagnostics.gate_statistics(draw("gru"), [draw_xs(50)])
    plots.gate_statistics(axes, statistics, "z")
    drawn = axes.get_lines()[0].get_ydata()
    np.testing.assert_allclose(drawn, np.sort(statistics.gates["z"].quantiles[2]))
    assert axes.get_ylabel() == "gate z"


def test_half_lives(axes):
    statistics = diagnostics.gate_statistics(draw("lstm"), [draw_xs(50)])
    plots.half_lives(axes, {"a": statistics, "b": statistics})
    np.testing.assert_allclose(heights(axes)["a"], np.sort(statistics.half_life))


def test_a_legend_stands_above_the_axes(axes):
    plots.gradient_norms(axes, {"a": np.ones(3), "b": np.ones(3)})
    axes.figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
