"""Reading an ONNX model, and finding its recurrent nodes by name, in subgraphs too."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxgru import checks
from jaxgru.interop.weights import listed

STANDARD = ("", "ai.onnx")  # two names of the domain of the standard operators
QUANTIZED = "DynamicQuantizeLSTM"  # an operator of onnxruntime


class Place(NamedTuple):
    """A recurrent node and its place in the model."""

    name: str
    """The name of the node for `from_onnx`. No other node of the model has this name."""
    node: Any
    graphs: tuple[Any, ...]
    """The graphs whose values the node sees: the main graph first, its own graph last."""


class Model(NamedTuple):
    """A model as `load` returns it."""

    where: str
    """The name of the model in errors."""
    graph: Any
    places: list[Place]
    """The recurrent nodes of the model, in the order of the file."""
    opset: int
    """The version of the standard operators."""
    folder: Path | None
    """The folder of its external files."""


def onnx_nodes(source: Any) -> list[str]:
    """List the recurrent nodes of an ONNX model, in the order of the file.

    `from_onnx(source, node)` takes each of these names as node. A node of the main graph has its
    own name here, or that of its first output if it has none. The name of a node in a branch or a
    loop begins with the path to it: `if_node/then_branch/gru`. If several nodes would share a name,
    their names are numbered: `gru#1`, `gru#2`. If the model calls functions of its own, the nodes
    inside them are listed, once for each call.

    Args:
        source: the path of a model, its bytes, or an `onnx.ModelProto`.

    Returns:
        The names of all GRU, LSTM, RNN and DynamicQuantizeLSTM nodes. They include nodes that
        `from_onnx` refuses, since they have no counterpart here.

    Raises:
        TypeError, ValueError: source is not a model, or is cut short.
        OSError: the file cannot be read.

    Example:
        >>> import jax, jaxgru, onnx, pathlib, tempfile
        >>> params = jaxgru.stack_init(jax.random.key(0), 3, 4, num_layers=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "gru.onnx")
        ...     jaxgru.interop.to_onnx(params, path)
        ...     names = jaxgru.interop.onnx_nodes(path)
        >>> names
        ['GRU_0', 'GRU_1']

    Source: the documentation of ONNX on graphs and their subgraphs.
    """
    return [place.name for place in load("onnx_nodes", source).places]


def load(caller: str, source: Any) -> Model:
    """Read a model from a path, bytes or an `onnx.ModelProto`, and inline its functions."""
    import onnx
    from google.protobuf.message import DecodeError

    folder = None
    if isinstance(source, onnx.ModelProto):
        model, where = source, "source"
    else:
        if isinstance(source, bytes):
            data, where = source, "source"
        elif isinstance(source, str | os.PathLike):
            path = Path(source)
            data, where, folder = path.read_bytes(), f"the file {str(path)!r}", path.parent
        else:
            expected = "a path, bytes or an onnx.ModelProto"
            raise checks.error(TypeError, caller, "source", expected, checks.describe(source))
        fix = "It may be cut short, or have another format."
        try:
            model = onnx.ModelProto.FromString(data)
        except DecodeError:
            got = f"{len(data)} bytes that cannot be decoded"
            raise checks.error(ValueError, caller, where, "an ONNX model", got, fix) from None
        if not (model.HasField("graph") and model.opset_import):  # these fields are written last
            got = f"{len(data)} bytes that lack the end of a model"
            raise checks.error(ValueError, caller, where, "an ONNX model", got, fix)
    if model.functions:
        model = _inlined(caller, where, model)
    places, most = [], allowance(model.ByteSize())
    for place in _places((model.graph,), ""):
        places.append(place)
        most -= len(place.name)
        if most < 0:  # the names of all nodes in a branch contain the name of the branch
            got = "names that take too much memory"
            raise checks.error(ValueError, caller, where, "a model with short names of nodes", got)
    names = _numbered([place.name for place in places])
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    opset = max(opsets.get(domain, 1) for domain in STANDARD)
    named = [place._replace(name=name) for place, name in zip(places, names, strict=True)]
    return Model(where, model.graph, named, opset, folder)


def find(model: Model, wanted: str | None) -> Place:
    """Return the place with this name, or whose node or output has it. None finds the only one."""
    places = model.places
    if not places:
        kinds = ", ".join(sorted({f"{n.op_type}" for n in model.graph.node}))
        expected = "a model with a GRU, LSTM or RNN node"
        got = f"a model with the nodes {kinds}" if kinds else "a model without nodes"
        raise checks.error(ValueError, "from_onnx", model.where, expected, got)
    if wanted is not None and not isinstance(wanted, str):
        raise checks.error(TypeError, "from_onnx", "node", "a name", checks.describe(wanted))
    fits = [place for place in places if wanted is None or wanted == place.name]
    if not fits and wanted:
        fits = [place for place in places if wanted in (place.node.name, *place.node.output)]
    if len(fits) == 1:
        return fits[0]
    if fits and wanted is not None:
        names = listed(place.name for place in fits)
        expected, got = "the name of one node", f"{wanted!r}, the name of {len(fits)} nodes"
        fix = f"Their full names are {names}."
        raise checks.error(ValueError, "from_onnx", "node", expected, got, fix)
    expected = f"one of {listed(place.name for place in places)}"
    fix = (
        "Each call reads one node: read the layers of a chain one by one." if wanted is None else ""
    )
    raise checks.error(ValueError, "from_onnx", "node", expected, repr(wanted), fix)


def _places(graphs: tuple[Any, ...], prefix: str) -> Iterator[Place]:
    """Find the recurrent nodes of the last graph and of its subgraphs."""
    for node in graphs[-1].node:
        name = f"{prefix}{node.name or next(filter(None, node.output), node.op_type)}"
        if _is_recurrent(node):
            yield Place(name, node, graphs)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _places((*graphs, attribute.g), f"{name}/{attribute.name}/")


def _is_recurrent(node: Any) -> bool:
    if node.domain in STANDARD:
        return node.op_type in ("GRU", "LSTM", "RNN")
    return node.domain == "com.microsoft" and node.op_type == QUANTIZED


def _numbered(names: list[str]) -> list[str]:
    """Number the names that occur more than once."""
    total, taken, last = Counter(names), set(names), Counter[str]()
    for k, name in enumerate(names):
        if total[name] > 1:
            last[name] += 1
            while f"{name}#{last[name]}" in taken:  # another node has this name
                last[name] += 1
            names[k] = f"{name}#{last[name]}"
            taken.add(names[k])
    return names


def _inlined(caller: str, where: str, model: Any) -> Any:
    """Inline the functions of the model. Raise an error if that would not end."""
    from onnx import inliner

    size = model.ByteSize()
    expected = "a model whose functions can be inlined"
    if _size_inlined(model) > allowance(size):
        got = f"functions that call each other, so that {size} bytes grow beyond memory"
        raise checks.error(ValueError, caller, where, expected, got)
    try:
        inlined = inliner.inline_local_functions(model)
    except Exception as reason:  # of many kinds, since it comes from C++
        raise checks.error(ValueError, caller, where, expected, f"{reason}".rstrip(".")) from reason
    left = [f.name for f in inlined.functions if any(map(_is_recurrent, _all_nodes(f)))]
    if left:
        got = f"{listed(left)} in another version of the operators than that of the model"
        raise checks.error(ValueError, caller, where, expected, got)
    return inlined


def allowance(size: int) -> int:
    """The largest number of bytes that may be computed from a file of this size.

    A damaged file may declare any sizes. The factor 64 allows eight operators on a quantized weight
    of one byte, where each result counts as 8 bytes.
    """
    return 2**26 + 64 * size


def _size_inlined(model: Any) -> float:
    """A bound on the size of the model after inlining, in bytes. It may be infinite."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[Any, float] = {}

    def size_of(part: Any, depth: int) -> float:
        return part.ByteSize() + sum(size_of_call(call, depth) for call in _all_nodes(part))

    def size_of_call(node: Any, depth: int) -> float:
        key = (node.domain, node.op_type, node.overload)
        if key not in functions:
            return 0
        if key not in sizes:
            sizes[key] = float("inf")  # it remains so if the function calls itself
            if depth < 100:  # no exporter writes calls that are so deep
                sizes[key] = size_of(functions[key], depth + 1)
        return sizes[key]

    return size_of(model.graph, 0)


def _all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph or a function, and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)
