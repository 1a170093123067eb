"""The table of one study on more devices and processes."""

import pytest

from benchmarks import scaling
from benchmarks.scaling import ALONE, Config, Layout

TINY = Config(length=5, hidden=3, batch=8, updates=8, seeds=(0,), rounds=1)


def test_how_far_losses_are_apart(monkeypatch):
    losses = {ALONE: [[1.0, 2.0], [4.0, 4.0]], Layout(2, 1): [[1.0, 2.2], [4.0, 3.0]]}
    monkeypatch.setattr(scaling, "train", lambda config, dtype, layout: (losses[layout], 5.0))
    monkeypatch.setattr(scaling, "LAYOUTS", tuple(losses))
    monkeypatch.setattr(scaling, "DTYPES", ("float32",))
    alone, two = scaling.measure(TINY)
    assert (alone.first, alone.last, alone.rate) == (0, 0, 5.0)
    assert two.first == pytest.approx(0.1)
    assert two.last == pytest.approx(0.25)
    assert "| float32 | 2 | 1 | 5.0 | 0.1 | 0.2 |" in scaling.table(TINY, [alone, two])


@pytest.mark.slow
def test_layouts_are_trained(monkeypatch):
    monkeypatch.setattr(scaling, "LAYOUTS", (ALONE, Layout(1, 2), Layout(2, 1)))
    monkeypatch.setattr(scaling, "DTYPES", ("float64",))
    results = scaling.measure(TINY)
    assert [result.layout for result in results] == list(scaling.LAYOUTS)
    for result in results:
        assert result.rate > 0
        # A record has six digits, so the last may differ by one.
        assert max(result.first, result.last) < 2e-5


@pytest.mark.slow
def test_a_run_that_fails_is_told():
    with pytest.raises(scaling.Failed, match="--batch-size must be a multiple of 2"):
        scaling.train(Config(batch=3, updates=8), "float32", Layout(1, 2))
