"""Read all ONNX files of a folder with little memory: `python - FOLDER`. Print a line for each.

A line is JSON: the file, the result, and the time. The result is "read", "refused" or a fault: an
exception that is not an error of this library, or a lack of memory.
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

from jaxgru.interop import from_onnx, onnx_nodes

#: The memory above that of the process at its start. Files have a few KB, and may expand to 64 MiB.
SPARE = 2**29


def outcome(path):
    """The worst result of all nodes of a file, in one word."""
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
    outcome(paths[0])  # an intact file first, which loads libraries and starts threads
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
