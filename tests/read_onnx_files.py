"""Reads all ONNX files of a folder, in little memory, and prints a line on each: `python - FOLDER`.

A line is JSON: the file, what came of it, and how long it took. What came is "read", "refused" or
what is wrong: an exception without the words of this library, or memory that there was not.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

from jaxgru.interop import from_onnx, onnx_nodes

#: Above what the process has when it starts. Files have a few KB, of which 64 MiB may be made.
SPARE = 2**29


def outcome(path):
    """One word on all nodes of a file: the worst."""
    words = set()
    try:
        names = onnx_nodes(path)
    except Exception as error:
        return judged(error, "onnx_nodes: ")
    for name in [None, *names]:
        try:
            from_onnx(path, name)
            words.add("read")
        except Exception as error:
            words.add(judged(error, "from_onnx: "))
    return max(words, key=lambda word: (word not in ("read", "refused"), word == "read"))


def judged(error, start):
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return f"out of memory: {error}"
    if isinstance(error, TypeError | ValueError) and str(error).startswith(start):
        return "refused"
    return f"{type(error).__name__}: {error}"


def main(folder):
    warnings.simplefilter("error")
    paths = sorted(Path(folder).glob("*.onnx"))
    outcome(paths[0])  # a whole one: libraries are loaded, threads are there
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + SPARE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for path in paths:
        begin = time.monotonic()
        word = outcome(path)
        seconds = time.monotonic() - begin
        print(json.dumps([path.name, word, seconds]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
