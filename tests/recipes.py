"""The code blocks of a page under docs/, run as they are printed there."""

import functools
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def run(page, **names):
    """The names that the blocks of a page define, run one after the other."""
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    return names


@functools.cache
def names_of(page):
    """As `run`, once in a process: not when tests are collected, and not for every test."""
    return run(page)


def blocks(page):
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
