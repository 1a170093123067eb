"""Each network of a population trains as if it were alone, and the map shows the results."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.adding_task.task import BASELINE, make_task
from experiments.common.interrupts import Interrupts
from experiments.common.programs import make_mesh
from experiments.common.training import make_evaluate, make_train_chunk, train_init
from experiments.population import __main__ as population
from experiments.population.picture import draw_map
from experiments.population.settings import PopulationSettings
from experiments.population.train import Population, grid, make_population
from runs import ROOT, on_devices

pytestmark = pytest.mark.usefixtures("optax_promotes")

SIZES = {"length": 6, "hidden-size": 3, "batch-size": 2, "updates": 3, "test-examples": 4}
TINY = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
GRID = ["--rates", "2", "--biases", "3", "--together", "2"]
COMMAND = [sys.executable, "-m", "experiments.population"]


def read(out):
    return json.loads((out / "population.json").read_text())


@pytest.fixture(scope="module")
def small(optax_promotes, tmp_path_factory):
    out = tmp_path_factory.mktemp("population") / "run"
    assert population.main([*TINY, *GRID, "--out", str(out)]) == 0
    return out


def test_every_network_is_trained_as_if_alone(small):
    """Compare with the usual training of one network with the same seed and the same bias."""
    record = read(small)
    settings = PopulationSettings(
        length=6, hidden_size=3, batch_size=2, updates=3, test_examples=4, rates=2, biases=3
    )
    how = settings.adding()
    task = make_task(how)
    init = jax.jit(lambda rate: train_init(task, how, jnp.uint32(0), rate))
    chunk = jax.jit(make_train_chunk(task, how, 6))
    evaluate = jax.jit(make_evaluate(task, how, task.stages[-1]))
    for r, rate in enumerate(record["learning_rates"]):
        for b, bias in enumerate(record["biases"]):
            state = init(jnp.float32(rate))
            cell = state.network.cell
            cell = dataclasses.replace(cell, b=cell.b.at[1].set(jnp.float32(bias)))
            state = state._replace(network=dataclasses.replace(state.network, cell=cell))
            state, _ = chunk(state, jnp.int32(3), jnp.int32(0), jnp.int32(1))
            loss = float(evaluate(state.network)["loss"])
            # These are float32 sums in another order, after three steps of Adam at a rate up to 3.
            assert record["test_loss"][r][b] == pytest.approx(loss, rel=1e-3)


def test_the_record_is_complete(small):
    record = read(small)
    assert record["command"].startswith("python -m experiments.population --rates 2 --biases 3")
    assert record["settings"]["seed"] == 0
    assert record["devices"] == 1
    assert record["seconds"] > 0
    assert record["machine"]
    np.testing.assert_allclose(record["learning_rates"], [1e-4, 3.0], rtol=1e-5)
    assert record["biases"] == [-8.0, -2.0, 4.0]
    assert np.ptp(record["test_loss"]) > 0
    assert (small / "map.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in small.iterdir()) == ["lock", "map.png", "population.json"]


def test_a_used_folder_is_refused(small, capsys):
    assert population.main([*TINY, *GRID, "--out", str(small)]) == 2
    assert "is in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--rates", "0"), "--rates must be at least 1, got 0"),
        (("--together", "0"), "--together must be at least 1, got 0"),
        (("--rate-range", "1", "0.1"), "--rate-range must be positive, finite and in order, got 1"),
        (("--bias-range", "0", "inf"), "--bias-range must be finite and in order, got 0.0 inf"),
        (("--seed", "-1"), "--seed must be in [0, 2**32), got -1"),
    ],
)
def test_a_wrong_value_is_one_line_of_error(flags, expected, tmp_path, capsys):
    assert population.main([*flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {expected}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_wish_to_stop_loses_the_run_and_says_so(tmp_path, monkeypatch, capsys):
    wish = Interrupts()

    def advance(members, done, count):
        wish.asked = True
        return members, np.ones(2)

    stub = Population(lambda rates, biases: rates, advance, lambda networks: networks)
    monkeypatch.setattr(population, "make_population", lambda settings, mesh: stub)
    settings = PopulationSettings(rates=2, biases=1, updates=3, out=tmp_path)
    assert population.run(population.Console(), settings, wish) == 130
    assert "Interrupted after 1 of 3 updates: nothing is written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_not_finite_is_marked(small):
    record = read(small)
    record["test_loss"][1][2] = None
    figure = draw_map(record, BASELINE)
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "not finite" in labels
    shown = axes.collections[0].get_array().reshape(3, 2)
    assert np.ma.getmaskarray(shown).tolist() == [[False, False], [False, False], [False, True]]
    record["test_loss"] = [[None] * 3] * 2
    figure = draw_map(record, BASELINE)  # there is no best network
    assert len(figure.axes[0].get_legend().get_texts()) == 1


def start(args, devices=1):
    return subprocess.Popen(
        [*COMMAND, *args],
        cwd=ROOT,
        env=on_devices(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(tmp_path):
    losses = []
    for devices in (1, 8):
        out = tmp_path / str(devices)
        done = start([*TINY, "--rates", "4", "--biases", "6", "--out", str(out)], devices)
        assert done.communicate()[1] == ""
        assert done.returncode == 0
        assert read(out)["devices"] == devices
        losses.append(read(out)["test_loss"])
    # float32 sums have another order: groups of 16 and 8 on one device, or of 3 on each of eight.
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.slow
def test_what_the_devices_cannot_divide_is_one_line_of_error(tmp_path):
    done = start([*TINY, *GRID, "--out", str(tmp_path / "out")], devices=4)
    error = done.communicate()[1]
    assert done.returncode == 2
    assert "--rates times --biases is a multiple of 4, the devices, got 2" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_a_signal_stops_it_and_leaves_nothing(tmp_path):
    flags = [*GRID, "--hidden-size", "2", "--length", "2", "--updates", "1000000000"]
    with start([*flags, "--out", str(tmp_path)]) as done:
        try:
            for line in done.stdout:
                if "updates, training loss" in line:  # after the first five seconds
                    break
            done.send_signal(signal.SIGTERM)
            assert "nothing is written" in done.communicate(timeout=60)[0]
        finally:
            done.kill()
    assert done.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_devices_never_speak_to_each_other():
    settings = PopulationSettings(
        length=6, hidden_size=3, batch_size=2, updates=3, rates=2, biases=2, together=2
    )
    programs = make_population(settings, make_mesh(jax.devices(), 4))
    rates, biases = (np.repeat(each, 2).astype(np.float32) for each in grid(settings))
    members = jax.eval_shape(programs.init, rates, biases)
    text = str(jax.make_jaxpr(programs.advance)(members, np.int32(0), np.int32(1)))
    assert "shard_map" in text
    assert not re.search(r"psum|all_gather|all_to_all|ppermute|pmax|pmin", text)
