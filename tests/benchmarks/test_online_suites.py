"""Latency and throughput measure what they claim to, and a donated carry is used up."""

import json
import sys

import jax
import numpy as np
import pytest

import jaxgru
from benchmarks import latency, throughput
from benchmarks.timing import Times


@pytest.fixture(autouse=True)
def plain_float32():
    """Everything is timed in float32. The Adam of optax needs standard promotion."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def test_latencies_are_percentiles_of_every_contestant():
    found = latency.latencies(2, 3, rounds=1)
    assert set(found) == {"jit", "ahead of time", "jit, donated", "ahead of time, donated"}
    for values in found.values():
        assert len(values) == len(latency.PERCENTILES)
        assert 0 < values[0] <= values[1] <= values[2] <= values[3]
    table = latency.table({"H=3": {"jit": [1.4, 2, 3, 1000]}})
    assert "p50, us | p90, us | p99, us | p99.9, us |" in table
    assert "| H=3 | jit | 1 | 2 | 3 | 1000 |" in table


@pytest.mark.parametrize("donated", [True, False])
def test_only_a_donated_carry_is_used_up(donated):
    params = jaxgru.gru_init(jax.random.key(0), latency.INPUTS, 3)
    for name, serve in latency.contestants(params).items():
        if ("donated" in name) != donated:
            continue
        old, x = jaxgru.initial_carry(params), np.ones(latency.INPUTS, np.float32)
        new, _ = serve(params, old, x)
        assert old.is_deleted() == donated, name
        if donated:
            with pytest.raises((RuntimeError, ValueError), match="deleted"):
                serve(params, old, x)
        else:
            assert (serve(params, old, x)[0] == new).all()


@pytest.mark.slow
def test_throughput_is_that_of_a_network(tmp_path, monkeypatch, capsys):
    """The result of a sample of three is scaled up, and nothing is divided twice."""
    config = throughput.Config(
        sizes=(6,), updates=1, length=4, hidden_size=2, batch_size=2, sample=3, rounds=1
    )
    monkeypatch.setattr(
        throughput,
        "interleave",
        lambda calls, rounds: {name: Times(3.0, 4.0, 6.0, 9.0) for name in calls},
    )
    found = throughput.seconds(config, 6)
    assert found[throughput.GROUPS] == found[throughput.ALL] == Times(0.5, 2 / 3, 1.0, 1.5)
    assert found[throughput.ALONE] == Times(1.0, 4 / 3, 2.0, 3.0)
    assert "| 6 | 1 | 1 | 0 | 2.00 (2.00) |" in throughput.table({6: found})
    monkeypatch.undo()
    out = tmp_path / "throughput.json"
    flags = "--sizes 6 --updates 1 --length 4 --hidden-size 2 --batch-size 2 --sample 3 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["throughput", *flags.split(), "--out", str(out)])
    assert throughput.main() == 0
    record = json.loads(out.read_text())
    assert record["command"].startswith("python -m benchmarks.throughput --sizes 6")
    times = record["seconds_of_a_network"]["6"]
    assert set(times) == {throughput.GROUPS, throughput.ALL, throughput.ALONE}
    assert all(0 < each["minimum"] <= each["median"] for each in times.values())


@pytest.mark.slow
def test_the_contestants_train_the_same_networks():
    """The losses of the second turn, after one update of each."""
    config = throughput.Config(updates=1, length=4, hidden_size=2, batch_size=2)
    settings = throughput.settings_of(config, 2)
    together = throughput._together(settings)
    alone = throughput._alone(settings, 2)
    together(), alone()
    again, alone_again = together(), alone()  # the updates had different learning rates
    assert again[0] != again[1]
    # These are float32 sums in another order.
    np.testing.assert_allclose(again, alone_again, rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "flags"), [(latency, ["--rounds", "0"]), (throughput, ["--sizes", "4", "0"])]
)
def test_a_wrong_value_is_one_line_of_error(module, flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    assert module.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
