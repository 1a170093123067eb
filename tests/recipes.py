"""Run the code blocks of a page under docs/ as they are printed there."""

import functools
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def run(page, **names):
    """Run the blocks of a page one after the other, and return the names that they define."""
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    return names


@functools.cache
def names_of(page):
    """As `run`, once in a process: not when tests are collected, and not for every test."""
    return run(page)


def blocks(page):
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
