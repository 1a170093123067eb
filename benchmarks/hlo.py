"""The text of a compiled program: its computations, and the loops among them."""

import re
from collections.abc import Callable, Iterator

Computations = dict[str, list[str]]
#: A second name for the computation that is the whole program.
ENTRY = "ENTRY"


def computations(text: str) -> Computations:
    """{name: lines}."""
    found: Computations = {}
    lines: list[str] = []
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start:
            lines = found[start[2]] = []
            if start[1]:
                found[ENTRY] = lines
        lines.append(line)
    return found


def turns(program: Computations, line: str) -> int | None:
    """The iterations of the loop in a line with an operation `while`; None for any other line.

    XLA notes the number for a CPU and a GPU. For a TPU it is in the condition, which compares the
    index with it.
    """
    if not re.search(r" while\(", line):
        return None
    known = re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', line)
    if known:
        return int(known[1])
    name = _called("condition", line)
    lines = [line for part in _reached(program, name) for line in program[part]]
    return max(int(n) for line in lines for n in re.findall(r"constant\((\d+)\)", line))


def total(program: Computations, value: Callable[[str], float], name: str = ENTRY) -> float:
    """The sum of a value over all lines that run. Lines in loops count at every iteration."""
    found = 0.0
    for line in program[name]:
        found += value(line)
        count = turns(program, line)
        if count is not None:
            found += count * total(program, value, _called("body", line))
        elif re.search(r" call\(", line):
            found += total(program, value, _called("to_apply", line))
    return found


def loops(program: Computations, name: str = ENTRY) -> Iterator[int]:
    """The iterations of each loop, in the order of the program, inner loops after outer ones."""
    for line in program[name]:
        count = turns(program, line)
        if count is not None:
            yield count
            yield from loops(program, _called("body", line))
        elif re.search(r" call\(", line):
            yield from loops(program, _called("to_apply", line))


def _called(what: str, line: str) -> str:
    found = re.search(rf"{what}=%?([\w.\-]+)", line)
    assert found, line
    return found[1]


def _reached(program: Computations, name: str) -> set[str]:
    calls = re.findall(r"calls=%?([\w.\-]+)", "\n".join(program[name]))
    return {name}.union(*(_reached(program, call) for call in calls))
