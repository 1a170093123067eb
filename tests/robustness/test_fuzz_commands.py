"""Random command lines end with an exit code in `--help` and one line of error, without a
traceback.

A wrong one stops before anything is written. A valid one trains as little as possible.
"""

import shutil

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from experiments.adding_task.__main__ import main as adding_main
from experiments.common.settings import LEAST
from experiments.copy_task.__main__ import main as copy_main

pytestmark = pytest.mark.usefixtures("optax_promotes")
MAINS = {"adding_task": adding_main, "copy_task": copy_main}
NUMBERS = ("length", "hidden-size", "layers", "chrono", "learning-rate", "half-life", "floor",
           "clip-norm", "batch-size", "updates", "curriculum", "checkpoint", "test-examples",
           "eval-every", "seeds", "save-every", "devices", "processes", "process-id")  # fmt: skip
NAMES = ("cell", "layout", "schedule", "optimizer", "dtype", "preset")
SMALL = ("--length", "3", "--hidden-size", "2", "--updates", "1", "--batch-size", "1",
         "--test-examples", "1", "--cell", "elman", "--chrono", "0")  # fmt: skip

ODD = ("", " ", "nan", "inf", "-inf", "-1", "0", "1e400", "1e-400", "0x10", "1_0", "\u0661",
       "9" * 30, "-" + "9" * 5000, "None", "True", "--", "-", "\0", "\n", "ü", "1,2", "[1]", "{}",
       "$(x)", "%s")  # fmt: skip
odd = st.sampled_from(ODD)
text = odd | st.text(max_size=5) | st.floats().map(str)


@st.composite
def wrong_flags(draw):
    """Draw a flag with a value that it does not accept, or an unknown flag."""
    kind = draw(st.sampled_from(["number", "name", "unknown"]))
    if kind == "name":
        return (f"--{draw(st.sampled_from(NAMES))}", draw(odd.filter(bool)))
    if kind == "number":
        name = draw(st.sampled_from(NUMBERS))
        bad = draw(
            st.sampled_from(["", "nan", "-inf", "inf", "-1", "x", "1e", "--", "-" + "9" * 30])
        )
        if name == "checkpoint" and bad == "--":
            return (f"--{name}",)
        return (f"--{name}", bad)
    return tuple(f"--{word}" if k == 0 else word for k, word in enumerate(draw(st.lists(
        st.sampled_from(["lenght", "x", "seeds=", "out=", "resum", "no-resume", "3", "-"]),
        min_size=1, max_size=3))))  # fmt: skip


def run(main, flags, capsys):
    """Return (exit code, standard error)."""
    try:
        code = main(flags)
    except SystemExit as stopped:  # tyro draws a box around its messages
        code = stopped.code
        return code, None, capsys.readouterr().err
    captured = capsys.readouterr()
    return code, captured.err, captured.err


@pytest.mark.parametrize("task", MAINS)
@given(flags=wrong_flags())
@example(flags=("--length", "-" + "9" * 5000))
@example(flags=("--seeds", "4294967296"))
@example(flags=("--seeds", "1", "1"))
@example(flags=("--save-every", "-1"))
@example(flags=("--clip-norm", "nan"))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wrong_flags_write_nothing(task, flags, tmp_path, capsys):
    out = tmp_path / "out"
    code, ours, error = run(MAINS[task], [*SMALL, "--out", str(out), *flags], capsys)
    assert code == 2, (flags, code)
    assert "Traceback" not in error
    if ours is not None:
        assert ours.startswith("error: ")
        assert ours.count("\n") == 1
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", MAINS)
@given(name=st.sampled_from((*NUMBERS, *NAMES)), value=text)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_any_flag(task, name, value, tmp_path, capsys):
    """Most command lines are wrong. Valid ones run, unless they would take long."""
    bare = name.replace("-", "_")
    if bare in LEAST and value.strip().lstrip("+").replace("_", "").isdecimal() and len(value) > 1:
        return  # a large network, or many updates
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    code, ours, error = run(MAINS[task], [*SMALL, "--out", str(out), f"--{name}", value], capsys)
    assert code in (0, 1, 2, 3), (name, value, code)
    assert "Traceback" not in error
    if ours is not None and code == 2:
        assert ours.startswith("error: ")
        assert ours.count("\n") == 1
    assert out.exists() == (code != 2)


@pytest.mark.parametrize("task", MAINS)
@pytest.mark.parametrize("name", ["", "x" * 5000], ids=["empty", "long"])
def test_odd_folders(task, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, ours, error = run(MAINS[task], ["--resume", "--out", name], capsys)
    assert code == 2
    assert "Traceback" not in error
    assert ours is None or ours.startswith("error: ")
    if name:
        code, ours, error = run(MAINS[task], [*SMALL, "--out", name], capsys)
        assert code == 2
        assert ours is None or ours.startswith("error: cannot write to ")
    assert not list(tmp_path.iterdir())
