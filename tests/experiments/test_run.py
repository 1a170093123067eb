"""`python -m experiments.<task>` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import jax
import pytest
from matplotlib.image import imread
from rich.console import Console

from cases import slow
from experiments.adding_task.__main__ import main
from experiments.common import metrics, progress
from experiments.copy_task.__main__ import main as copy_main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("optax_promotes")

SMALL = ("--length", "8", "--hidden-size", "16", "--updates", "250", "--eval-every", "100")


def run(out, *flags):
    return main([*SMALL, *flags, "--out", str(out)])


@pytest.fixture(scope="module")
def finished(optax_promotes, tmp_path_factory):
    """The folder of a run with two seeds that used its whole budget, its exit code and output."""
    out = tmp_path_factory.mktemp("runs") / "a" / "new"
    with redirect_stdout(StringIO()) as printed:
        code = run(out, "--seeds", "0", "3")
    return out, code, printed.getvalue()


def test_a_run_learns_and_leaves_its_records(finished):
    out, code, _ = finished
    names = [
        "answers.png",
        "checkpoints",
        "gates.png",
        "learning_curves.png",
        "lock",
        "metrics.jsonl",
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    header, evals, results = metrics.read_run(out / "metrics.jsonl")
    assert header["settings"]["length"] == 8
    assert header["replicas"] == [
        {"seed": 0, "learning_rate": 0.01},
        {"seed": 3, "learning_rate": 0.01},
    ]
    assert header["baseline"] == pytest.approx(1 / 6, rel=1e-5)
    assert header["parameters"] == 929
    assert header["command"].startswith("python -m experiments.adding_task --length 8 ")
    for replica in evals:
        assert [line["update"] for line in replica] == [100, 200, 250]
        assert replica[0]["train_loss"] > replica[-1]["train_loss"]
        assert replica[-1]["test_loss"] < header["baseline"] / 5
        assert [line["seconds"] for line in replica] == sorted(line["seconds"] for line in replica)
    assert evals[0] != evals[1]
    assert [(r["verdict"], r["update"]) for r in results] == [("not solved", 250)] * 2
    assert code == 1
    for name in ("learning_curves.png", "answers.png", "gates.png"):
        assert imread(out / name).std() > 0


def test_a_run_says_what_it_does(finished):
    out, _, printed = finished
    for text in (
        "Adding problem, T=8, halves, gru, 16 units",
        "929",  # 3 gates of 16 units with 2 inputs, 16 states and a bias, and 17 to read out
        "250 updates of 50 examples, 12,500 in all, for each of 2 replicas",
        "seeds 0 3; learning rates 0.01; all in one program",
        "loss 0.167, the best answer without memory",
        "test loss < 0.001",
        "jax ",
        "replica 1, 100/250 updates",
        "replica 1, 250/250 updates",
        "Seed 3, rate 0.01: not solved, test loss",
        "after 250 updates, 12,500 examples",
        str(out),
    ):
        assert text in printed
    assert "\x1b" not in printed
    assert "\r" not in printed


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_seed_decides_the_run(finished, tmp_path):
    run(tmp_path, "--seeds", "0", "3")
    first = metrics.read_run(finished[0] / "metrics.jsonl").evals
    again = metrics.read_run(tmp_path / "metrics.jsonl").evals
    for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert a | {"seconds": 0} == b | {"seconds": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "dtype"),
    [
        (main, "float64"),
        slow(copy_main, "bfloat16"),
        slow(main, "float16"),
        slow(copy_main, "float64"),
        slow(main, "bfloat16"),
        slow(copy_main, "float16"),
    ],
)
def test_every_dtype(command, dtype, tmp_path):
    flags = ["--length", "4", "--hidden-size", "5", "--updates", "2", "--batch-size", "2"]
    flags += ["--test-examples", "3", "--curriculum", "0", "--dtype", dtype]
    before = jax.config.jax_enable_x64
    try:
        assert command([*flags, "--out", str(tmp_path)]) == 1
    finally:
        jax.config.update("jax_enable_x64", before)
    assert (tmp_path / "gates.png").exists()


@pytest.mark.usefixtures("no_pictures")
def test_what_is_solved_stops_and_when_a_mark_was_first_reached(tmp_path, capsys):
    assert run(tmp_path, "--updates", "1000", "--solved", "0.004", "--eval-every", "50") == 0
    _, (evals,), (result,) = metrics.read_run(tmp_path / "metrics.jsonl")
    assert result["verdict"] == "solved"
    assert result["test_loss"] < 0.004
    assert 0 < result["update"] < 1000
    first = next(line["update"] for line in evals if line["test_loss"] < 0.01)
    assert first < result["update"]
    assert result["updates_to"] == {
        "loss < 0.01": first,
        "loss < 0.001": None,
        "loss < 5e-05": None,
    }
    printed = capsys.readouterr().out
    assert "solved, test loss" in printed
    assert f"; test loss < 0.01 at {first}" in printed


def test_a_used_folder_is_refused(finished, capsys):
    out = finished[0]
    before = (out / "metrics.jsonl").read_bytes()
    assert run(out) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the run in {out} is finished (not solved: 2)")
    assert f"python -m experiments.report {out}. To run anew, " in error
    assert "--out" in error
    assert error.count("\n") == 1
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_folder_of_an_unfinished_run_is_refused(finished, tmp_path, capsys):
    lines = (finished[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]))
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert "is in use by an unfinished run; continue it with --resume" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--length", "-5"), "--length must be at least 1, got -5"),
        (("--length", "1"), "--length must be at least 2, got 1"),
        (("--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--learning-rate", "nan"), "--learning-rate must be positive and finite, got nan"),
        (("--seeds", "0", "-1"), "--seeds must be in [0, 2**32), got 0 -1"),
        (("--seeds", "1", "1"), "--seeds must be different from each other, got 1 1"),
        (("--cell", "elman", "--chrono", "10"), "--chrono must be 0 with --cell elman"),
        (("--curriculum", "1"), "--curriculum must be 0 or above 1, got 1"),
        (("--resume",), "no run in "),
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--first-symbols", "11"), "--first-symbols must be 1 to 10, got 11"),
        (("--pass-symbols", "1"), "--pass-symbols must be in [0, 1), got 1"),
        (("--slope", "2"), "--slope must be 0 except with --layout tcn"),
    ],
)
def test_wrong_values_of_the_copy_task(flags, expected, tmp_path, capsys):
    assert copy_main(["--out", str(tmp_path / "out"), *flags]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, copy_main])
@pytest.mark.parametrize("flags", [("--layout", "x"), ("--cell", "x"), ("--nothing",)])
def test_a_wrong_flag_is_refused(flags, command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, copy_main])
def test_the_flags_fit_a_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        command(["--help"])
    assert stop.value.code == 0
    _, flags = capsys.readouterr().out.split("--help")
    assert len(flags.splitlines()) <= 56


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_preset_sets_the_defaults_and_flags_change_them(tmp_path, capsys):
    flags = ("--preset", "lem-2000", "--length", "4", "--hidden-size", "5", "--updates", "1")
    assert main([*flags, "--batch-size", "2", "--test-examples", "3", "--out", str(tmp_path)]) == 1
    settings = metrics.read_run(tmp_path / "metrics.jsonl").header["settings"]
    assert settings["preset"] == "lem-2000"
    assert settings["cell"] == "gru-reset-after"
    assert settings["length"] == 4


@pytest.mark.usefixtures("no_pictures")
def test_learning_rates_in_one_program_of_which_one_is_too_high(tmp_path, capsys):
    """A loss that is not finite stops only its replica."""
    flags = ("--cell", "elman", "--learning-rate", "1e-2", "1e-9", "1e38", "--updates", "20")
    assert run(tmp_path, *flags, "--eval-every", "5", "--clip-norm", "0") == 3
    _, evals, _ = metrics.read_run(tmp_path / "metrics.jsonl")
    learnt, stood = (replica[-1]["test_loss"] for replica in evals[:2])
    assert learnt < stood / 2
    printed = capsys.readouterr().out
    text = "Replica 2: the loss, its gradient or a weight was not finite at update 2, of 8 steps"
    assert text in printed
    assert "--learning-rate" in printed
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert not any("NaN" in line or "Infinity" in line for line in lines)
    results = [json.loads(line) for line in lines if '"result"' in line]
    assert [result["verdict"] for result in results] == ["not solved", "not solved", "not finite"]
    assert results[0]["update"] == 20
    assert results[2]["update"] == 0


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "experiments.adding_task", *SMALL, "--cell", "elman"]
    command += ["--updates", "10000000", "--eval-every", "5", "--learning-rate", "1e-9"]
    # A shell makes background processes ignore the signal, and their children inherit this.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    heed += "; os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", heed, *command, "--out", str(tmp_path)],
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
    assert f"python -m experiments.adding_task --out {tmp_path} --resume" in printed
    assert not metrics.read_run(tmp_path / "metrics.jsonl").results
    assert list((tmp_path / "checkpoints").iterdir())


def test_the_live_line_stays_one_line():
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with progress.progress(console, 200, 1, 1 / 6) as show:
        show({"replica": 0, "update": 50, "length": 8, "train_loss": 0.5, "test_loss": 0.1})
        show({"replica": 0, "update": 100, "length": 8, "train_loss": 0.1, "test_loss": 0.0123})
    last = [line for line in text.getvalue().splitlines() if "loss" in line][-1]
    for part in ("100/200 updates", "/s", "T=8", "1.23e-02", "baseline 0.167", "left"):
        assert part in last


@pytest.mark.slow
def test_the_default_run_solves_the_task(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    result = metrics.read_run(tmp_path / "metrics.jsonl").results[0]
    assert result["verdict"] == "solved"
    assert result["test_loss"] < 1e-3
