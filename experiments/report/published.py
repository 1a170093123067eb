"""Published results on the two tasks."""

from typing import NamedTuple


class Published(NamedTuple):
    task: str  # the name of its folder in experiments/
    layout: str
    length: int
    network: str
    loss: float
    source: str


BAI = "Bai, Kolter & Koltun 2018"
RUSCH = "Rusch et al. 2022, after 30,000 updates"

PUBLISHED = (
    Published("adding_task", "anywhere", 600, "LSTM", 0.164, BAI),
    Published("adding_task", "anywhere", 600, "GRU", 5.3e-5, BAI),
    Published("adding_task", "anywhere", 600, "plain RNN", 0.177, BAI),
    Published("adding_task", "anywhere", 600, "TCN", 5.8e-5, BAI),
    Published("adding_task", "halves", 2000, "LEM", 5.9e-5, RUSCH),
    Published("adding_task", "halves", 5000, "LEM", 4.0e-5, RUSCH),
    Published("adding_task", "halves", 10_000, "LEM", 3.0e-5, RUSCH),
    Published("copy_task", "tcn", 1000, "LSTM", 0.0204, BAI),
    Published("copy_task", "tcn", 1000, "GRU", 0.0197, BAI),
    Published("copy_task", "tcn", 1000, "plain RNN", 0.0202, BAI),
    Published("copy_task", "tcn", 1000, "TCN", 3.5e-5, BAI),
)
