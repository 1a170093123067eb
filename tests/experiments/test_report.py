"""`python -m experiments.report` and other programs that read finished runs."""

import json
import re
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.adding_task.__main__ import main as adding
from experiments.common.metrics import read_run
from experiments.copy_task import generalization
from experiments.copy_task.__main__ import main as copying
from experiments.report import thin
from experiments.report.__main__ import main

pytestmark = pytest.mark.usefixtures("optax_promotes")

TINY = ("--hidden-size", "4", "--batch-size", "2", "--updates", "4", "--eval-every", "2")
TINY += ("--test-examples", "3", "--seeds", "0", "1")


@pytest.fixture(scope="module")
def runs(optax_promotes, tmp_path_factory):
    """A run with a published length, one of another task, and one that differs in a setting."""
    folder = tmp_path_factory.mktemp("runs")
    names = [folder / name for name in ("published", "copy", "chrono")]
    published = ("--layout", "anywhere", "--length", "600", "--solved", "100")
    assert adding([*TINY, *published, "--out", str(names[0])]) == 0
    flags = ["--length", "3", "--curriculum", "0", "--cell", "lstm", "--layers", "2"]
    assert copying([*TINY, *flags, "--out", str(names[1])]) == 1
    shutil.copytree(names[1], names[2])  # like a run with --chrono 0
    header, *lines = (names[2] / "metrics.jsonl").read_text().splitlines(keepends=True)
    header = json.loads(header)
    header["settings"]["chrono"] = 0.0
    (names[2] / "metrics.jsonl").write_text(json.dumps(header) + "\n" + "".join(lines))
    return names


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "new"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    return out


def test_the_table_sets_runs_beside_what_is_published(report):
    text = (report / "report.md").read_text()
    adding_table, copy_table = text.split("\n## ")
    assert "Adding problem, anywhere, T=600" in adding_table
    assert "no memory: the baseline | | 0.167" in re.sub(" +", " ", adding_table)
    assert "recall" not in adding_table
    assert "GRU (Bai, Kolter & Koltun 2018) | | 5.3e-05" in re.sub(" +", " ", adding_table)
    assert "| gru of 4 |" in adding_table
    assert "| 2 of 2 |" in adding_table
    assert "12.5%" in copy_table
    assert "| 0 of 2 |" in copy_table
    for label in ("lstm of 4", "lstm of 4, chrono 0"):
        assert f"| {label} |" in copy_table
    for line in text.splitlines():
        assert line.count("|") in (0, 7, 8)


def test_the_page_needs_no_network(report, runs):
    page = (report / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 3 * len(runs) + 1  # three pictures for each run, and the comparison
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", page)
    assert "python -m experiments.copy_task --length 3" in page
    assert page.count("<h3>") == len(runs)


def test_runs_of_one_table_share_a_picture(report):
    assert imread(report / "comparison_1.png").std() > 0
    assert not (report / "comparison_0.png").exists()


def test_a_run_that_was_killed_is_unfinished(runs, tmp_path):
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    assert main([str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert "| unfinished |" in (tmp_path / "report" / "report.md").read_text()


def test_what_is_no_run_is_one_line_of_error(tmp_path, capsys):
    assert main([]) == 2
    assert main([str(tmp_path / "absent")]) == 2
    (tmp_path / "metrics.jsonl").write_text("nonsense\n")
    assert main([str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "name at least one folder" in errors[0]
    assert "absent" in errors[1]
    assert "is no record of a run" in errors[2]


def test_recall_at_other_gaps(runs, capsys):
    flags = ("--lengths", "2", "5", "--test-examples", "4")
    assert generalization.main([str(runs[1]), str(runs[2]), *flags]) == 0
    found = json.loads((runs[1] / "generalization.json").read_text())
    assert found["lengths"] == [2, 5]
    assert found["recall"]["copy"] == found["recall"]["chrono"]  # they are copies
    for name in ("copy", "chrono"):
        assert set(found["recall"][name]) == {"0", "1"}
        assert all(0 <= recall <= 1 for curve in found["recall"][name].values() for recall in curve)
    assert imread(runs[1] / "generalization.png").std() > 0
    assert "T=5" in capsys.readouterr().out


def test_recall_of_no_run_is_one_line_of_error(runs, tmp_path, capsys):
    for flags in ([], [str(tmp_path)], [str(runs[1]), "--lengths", "0"]):
        assert generalization.main(flags) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def record(path, losses, lengths):
    """The record of a run with one replica."""
    header = {"kind": "header", "replicas": [{"seed": 0, "learning_rate": 0.01}]}
    evals = [
        {"kind": "eval", "replica": 0, "update": k, "length": length, "train_loss": loss}
        for k, (loss, length) in enumerate(zip(losses, lengths, strict=True))
    ]
    lines = [header, *evals, {"kind": "result", "replica": 0, "verdict": "solved"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_a_thinned_curve_keeps_its_look(tmp_path):
    path = tmp_path / "metrics.jsonl"
    draw = np.random.default_rng(0)
    losses = np.exp(-np.arange(2000) / 300 + 0.01 * draw.standard_normal(2000))
    losses[[700, 1301]] *= 5  # these spikes last one evaluation
    lengths = np.where(np.arange(2000) < 1500, 10, 30)
    lines = record(path, losses.tolist(), lengths.tolist())
    assert thin.main([str(tmp_path)]) == 0
    run = read_run(path)
    assert run.header == lines[0] | {"evaluations": [2000]}
    assert run.results == lines[-1:]
    (evals,) = run.evals
    assert len(evals) == thin.KEPT
    updates = [line["update"] for line in evals]
    assert {0, 700, 1301, 1499, 1500, 1999} <= set(updates)
    assert [lines[1 + update] for update in updates] == evals
    drawn = np.interp(np.arange(2000), updates, np.log([line["train_loss"] for line in evals]))
    assert np.abs(drawn - np.log(losses)).max() < 0.05
    text = path.read_text()
    assert thin.main([str(tmp_path)]) == 0
    assert path.read_text() == text


def test_what_is_short_or_unfinished_is_not_thinned(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    record(path, [1.0] * 50, [10] * 50)
    text = path.read_text()
    assert thin.main([str(tmp_path)]) == 0
    assert path.read_text() == text
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert thin.main([str(tmp_path)]) == 2
    assert "the run has not finished" in capsys.readouterr().err
    assert path.read_text() == "".join(lines[:-1])
