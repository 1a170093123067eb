"""The code blocks of a page under docs/, run as they are printed there."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def run(page, language="python", **names):
    """The names that the page's blocks of a language define, run one after the other."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names
