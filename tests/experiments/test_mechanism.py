"""`python -m experiments.mechanism` on a small network that was trained on a short gap."""

import json

import pytest
from matplotlib.image import imread

from experiments.common.metrics import read_run
from experiments.copy_task.__main__ import main as copying
from experiments.mechanism.__main__ import main

pytestmark = pytest.mark.usefixtures("optax_promotes", "no_pictures")

SMALL = ("--length", "14", "--hidden-size", "12", "--batch-size", "4", "--test-examples", "5",
         "--pass-symbols", "0", "--pass-nats", "100", "--updates", "60", "--eval-every", "5",
         "--first-symbols", "9", "--seeds", "3")  # fmt: skip


@pytest.mark.slow
def test_three_moments_are_measured(tmp_path, capsys):
    trained, out = tmp_path / "run", tmp_path / "mechanism"
    assert copying([*SMALL, "--out", str(trained)]) == 1
    flags = ("--examples", "3", "--probes", "4", "--seed", "3", "--out", str(out))
    assert main([str(trained), *flags]) == 0
    found = json.loads((out / "mechanism.json").read_text())
    (evals,) = read_run(trained / "metrics.jsonl").evals
    grown = next(line["update"] for line in evals if line["length"] > 10)
    assert found["updates_at_the_shortest_gap"] == grown - 5
    assert list(found["moments"]) == ["as drawn", "at a gap of 10", "at a gap of 14"]
    for name, moment in found["moments"].items():
        assert len(found["half_life"][name]) == 12
        assert len(moment["log_gain"]["10"]) == 3
        assert len(moment["exponents"]) == 12
        assert 0 <= moment["recall"] <= 1
        if moment["fixed_points"] + moment["slow_points"]:
            assert 0 <= moment["recall_from_nearest"] <= 1
            assert moment["distance_to_nearest"] > 0
        else:
            assert moment["lost"] == 3
            assert moment["recall_from_nearest"] is None
    # its chrono biases reach 100 steps
    assert all(0.5 < steps < 200 for steps in found["half_life"]["as drawn"])
    for name in ("units", "gradient", "lyapunov", "fixed_points"):
        assert imread(out / f"{name}.png").std() > 0
    assert "The gap began to grow after" in capsys.readouterr().out

    wrong = (
        (["--seed", "0"], "--seed must be one of (3,), got 0"),
        (["--seed", "3", "--probes", "0"], "--probes must be at least 1, got 0"),
    )
    for flags, expected in wrong:
        assert main([str(trained), *flags, "--out", str(tmp_path / "x")]) == 2
        assert capsys.readouterr().err == f"error: {expected}\n"
        assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_run_without_a_gap_to_hold_is_refused(tmp_path, capsys):
    trained = tmp_path / "run"
    flags = ("--updates", "5", "--cell", "elman", "--chrono", "0", "--seeds", "0")
    assert copying([*SMALL, *flags, "--out", str(trained)]) == 1
    capsys.readouterr()
    assert main([str(trained), "--out", str(tmp_path / "x")]) == 2
    assert "must be of one layer of GRUs with a curriculum" in capsys.readouterr().err
    assert main([str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "no run in" in capsys.readouterr().err
