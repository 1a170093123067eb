"""`python -m experiments.adding_task` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from experiments.adding_task.__main__ import main
from experiments.common import metrics, plots, progress

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("optax_promotes")

SMALL = ("--length", "8", "--hidden-size", "16", "--updates", "250", "--eval-every", "100")


def run(out, *flags):
    return main([*SMALL, *flags, "--out", str(out)])


@pytest.fixture(scope="module")
def finished(optax_promotes, tmp_path_factory):
    """The folder of a run that spent its budget, its exit code and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "a" / "new"
    with redirect_stdout(StringIO()) as printed:
        code = run(out)
    return out, code, printed.getvalue()


def test_a_run_learns_and_leaves_its_records(finished):
    out, code, _ = finished
    assert sorted(path.name for path in out.iterdir()) == ["learning_curve.png", "metrics.jsonl"]
    header, evals, result = metrics.read_run(out / "metrics.jsonl")
    assert header["config"]["length"] == 8
    assert header["config"]["seed"] == 0
    assert header["baseline"] == pytest.approx(1 / 6)
    assert header["parameters"] == 929
    assert [line["update"] for line in evals] == [100, 200, 250]
    assert evals[0]["train_loss"] > evals[-1]["train_loss"]
    assert evals[-1]["test_loss"] < header["baseline"] / 5
    assert [line["seconds"] for line in evals] == sorted(line["seconds"] for line in evals)
    assert result is not None
    assert result["update"] == 250
    assert (code, result["verdict"]) == (1, "not solved")
    height, width, _ = imread(out / "learning_curve.png").shape
    assert (width, height) == (1080, 600)


def test_a_run_says_what_it_does(finished):
    out, _, printed = finished
    for text in (
        "Adding problem, T=8, halves, gru of 16 units",
        "929",  # 3 gates of 16 units with 2 inputs, 16 states and a bias, and 17 to read out
        "250 updates of 50 examples, 12,500 in all",
        "baseline    0.1667",
        "jax ",
        "100/250 updates",
        "250/250 updates",
        "Not solved: test loss",
        str(out),
    ):
        assert text in printed
    assert "\x1b" not in printed
    assert "\r" not in printed


def test_a_seed_decides_the_run(finished, tmp_path):
    run(tmp_path)
    first = metrics.read_run(finished[0] / "metrics.jsonl").evals
    again = metrics.read_run(tmp_path / "metrics.jsonl").evals
    assert [line | {"seconds": 0} for line in first] == [line | {"seconds": 0} for line in again]


def test_a_used_folder_is_refused(finished, capsys):
    out = finished[0]
    before = (out / "metrics.jsonl").read_bytes()
    assert run(out) == 2
    error = capsys.readouterr().err
    assert str(out) in error
    assert "--out" in error
    assert error.count("\n") == 1
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--length", "-5"), "--length must be at least 2, got -5"),
        (("--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--learning-rate", "nan"), "--learning-rate must be positive and finite, got nan"),
        (("--seed", "-1"), "--seed must be in [0, 2**32), got -1"),
        (("--out", "{file}/below"), "cannot write to"),
        (("--out", "{file}"), "cannot write to"),
    ],
)
def test_a_wrong_value_is_one_line_of_error(flags, expected, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("kept")
    flags = [flag.format(file=file) for flag in flags]
    assert main(["--out", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert file.read_text() == "kept"


@pytest.mark.parametrize("flags", [("--layout", "x"), ("--cell", "x"), ("--nothing",)])
def test_a_wrong_flag_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) <= 30


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    flags = ("--cell", "elman", "--learning-rate", "1e38", "--eval-every", "5")
    assert run(tmp_path, *flags) == 3
    assert "no longer finite" in capsys.readouterr().out
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert not any("NaN" in line or "Infinity" in line for line in lines)
    result = json.loads(lines[-1])
    assert result["verdict"] == "not finite"
    assert result["update"] == 5
    assert result["test_loss"] is None
    assert (tmp_path / "learning_curve.png").exists()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_what_was_recorded(tmp_path):
    command = [sys.executable, "-m", "experiments.adding_task", *SMALL]
    options = (
        "--cell",
        "elman",
        "--updates",
        "10000000",
        "--eval-every",
        "5",
        "--learning-rate",
        "1e-9",
    )
    # Tests that a shell runs in the background ignore the signal, and so would their children.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    heed += "; os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", heed, *command, *options, "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "updates, " not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    assert "Interrupted." in printed
    _, evals, result = metrics.read_run(tmp_path / "metrics.jsonl")
    assert result is not None
    assert result["verdict"] == "interrupted"
    assert result["update"] == evals[-1]["update"]
    assert (tmp_path / "learning_curve.png").exists()


def test_the_live_line_stays_one_line():
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with progress.progress(console, 200, 1 / 6) as show:
        show(100, 0.0123, 2.0)
    last = [line for line in text.getvalue().splitlines() if "loss" in line][-1]
    for part in ("100/200 updates", "1.23e-02", "baseline 0.1667", "50/s", "0:02 left"):
        assert part in last


def test_curves_of_several_runs_in_one_picture(finished, tmp_path):
    runs = [metrics.read_run(finished[0] / "metrics.jsonl")] * 2
    plots.learning_curves(tmp_path / "curves.png", runs)
    assert imread(tmp_path / "curves.png").shape[:2] == (600, 1080)


@pytest.mark.slow
def test_the_default_run_solves_the_task(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    result = metrics.read_run(tmp_path / "metrics.jsonl").result
    assert result is not None
    assert result["verdict"] == "solved"
    assert result["test_loss"] < 1e-3
