"""Params in one file in the safetensors format, with a digest of the whole file.

The file begins with eight bytes, which give the length of the header. The header is JSON, and the
arrays follow it. Only the names of the arrays tell which params they are, so nothing else in the
file can contradict them.
"""

import hashlib
import json
import math
import os
import uuid
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxgru import checks, plain
from jaxgru.cell import Params

#: The names of dtypes in the format.
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
VERSION = "1"
BLANK = "0" * 64  # stands for the digest while it is computed


def save(path: str | os.PathLike[str], params: Params) -> None:
    """Write params to one file.

    The file appears whole or not at all: `save` writes it under another name in the same folder,
    and then renames it. It has the safetensors format, so other programs can read its arrays by the
    names of `to_dict`.

    Args:
        path: the file. An existing file is replaced. The folder must exist.
        params: the params of any cell of this library, or a Bidirectional or Stack of such cells. A
            type of your own is accepted if `register` was given its forms. The leaves are float16,
            bfloat16, float32 or float64. A model with other arrays, such as a readout, is not
            accepted: docs/recipes/saving.md shows how to save it in one call.

    Raises:
        TypeError: params or their leaves have another type, or are tracers, as inside `jax.jit`.
        ValueError: the path is not that of a file, or its folder does not exist; or other processes
            hold a part of an array.
        OSError: the file cannot be written.

    Example:
        >>> import jax, jaxgru, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "params.safetensors"
        >>> params = jaxgru.gru_init(jax.random.key(0), 3, 8, reset_after=True, dtype="bfloat16")
        >>> jaxgru.save(path, params)
        >>> again = jaxgru.load(path)
        >>> again.reset_after, again.w_hh.dtype, bool((again.w_hh == params.w_hh).all())
        (True, dtype(bfloat16), True)

    Source: the description of the format, https://github.com/huggingface/safetensors.
    """
    file = Path(os.path.realpath(_path("save", path)))  # a link stays a link
    if not file.parent.is_dir():
        fix = "Make the folder first: pathlib.Path(path).parent.mkdir(parents=True)."
        expected = "in a folder that exists"
        raise checks.error(ValueError, "save", "path", expected, repr(str(file)), fix)
    leaves = plain.named("save", params)
    _write(file, _encode({name: _array(name, leaf) for name, leaf in leaves.items()}))


def load(path: str | os.PathLike[str]) -> Params:
    """Read params from a file that `save` wrote.

    Args:
        path: the file. If it holds params of your own type, `register` the type first.

    Returns:
        The params that were saved: the same class, form, dtype and bits.

    Raises:
        TypeError: the path is neither a str nor a path.
        ValueError: `save` did not write the file, or at least one bit of it has changed since; or
            the file holds float64 params while 64-bit types are off.
        OSError: the file cannot be read.

    Example:
        >>> import jax, jaxgru, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "params.safetensors"
        >>> jaxgru.save(path, jaxgru.stack_init(jax.random.key(0), 3, 8, num_layers=2))
        >>> len(jaxgru.load(path).layers)
        2
    """
    file = _path("load", path)
    return plain.read("load", _decode(str(file), file.read_bytes()))


def _path(caller: str, path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        fix = "The path comes first: jaxgru.save(path, params)." if caller == "save" else ""
        got = checks.describe(path)
        raise checks.error(TypeError, caller, "path", "a str or a path", got, fix)
    file = Path(path)
    if file.exists() and not file.is_file():
        got = f"the {'folder' if file.is_dir() else 'device or pipe'} {str(file)!r}"
        fix = 'Add the name of a file, such as "params.safetensors".'
        raise checks.error(ValueError, caller, "path", "a file", got, fix)
    return file


def _array(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, Tracer):
        fix = (
            "Arrays have no values inside jit, vmap and grad. Return params, and save them outside."
        )
        raise checks.error(TypeError, "save", repr(name), "an array", "a tracer", fix)
    if not checks.is_array(leaf):
        raise checks.error(TypeError, "save", repr(name), "an array", type(leaf).__name__)
    dtype = getattr(leaf.dtype, "name", None)
    if dtype not in DTYPES.values():
        expected = f"an array of dtype {checks.FLOATS}"
        raise checks.error(TypeError, "save", repr(name), expected, checks.describe(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        fix = "jax.experimental.multihost_utils.process_allgather collects its parts."
        got = "an array on devices of several processes"
        raise checks.error(ValueError, "save", repr(name), "on devices of this process", got, fix)
    return np.asarray(leaf, jnp.dtype(dtype))  # in this machine's byte order


def _encode(arrays: dict[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"jaxgru": VERSION, "sha256": BLANK}}
    names = {dtype: name for name, dtype in DTYPES.items()}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        entry = {"dtype": names[array.dtype.name], "shape": array.shape}
        header[name] = entry | {"data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(
        [len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays.values())]
    )
    return data.replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _decode(path: str, data: bytes) -> dict[str, np.ndarray]:
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        facts = header.pop("__metadata__")
        version, digest = facts["jaxgru"], facts["sha256"].encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        fix = (
            "If it has arrays by the names of jaxgru.to_dict, read it with the library that wrote "
            "it, such as numpy.load, and pass the arrays to jaxgru.from_dict."
        )
        raise _not_ours(path, "a file of another kind, or one that was cut short", fix) from None
    if version != VERSION:
        got = f"a file in version {version!r} of the format, not in version {VERSION!r}"
        raise _not_ours(path, got, "A newer jaxgru may read it.")
    if hashlib.sha256(data.replace(digest, BLANK.encode(), 1)).hexdigest().encode() != digest:
        raise _not_ours(path, "a file whose digest shows that it was changed or cut short")
    arrays = memoryview(data)[start:]
    try:
        return {name: _view(arrays, **entry) for name, entry in header.items()}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise _not_ours(path, "a file with a header that does not match its arrays") from None


def _view(data: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    known = jnp.dtype(DTYPES[dtype])
    found = np.frombuffer(data, known, math.prod(shape), begin).reshape(shape)
    if begin + found.nbytes != end:
        raise ValueError
    return found


def _not_ours(path: str, got: str, fix: str = "") -> Exception:
    return checks.error(ValueError, "load", repr(path), "a file that jaxgru.save wrote", got, fix)


def _write(file: Path, data: bytes) -> None:
    """Write the file whole or not at all, even if the machine stops in between."""
    fresh = file.with_name(f".{uuid.uuid4().hex}.jaxgru")
    try:
        with open(fresh, "xb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(fresh, file)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
