"""Programs for a GPU or a TPU, compiled without one: `python -m benchmarks.ahead --help`."""

import contextlib
import dataclasses
import functools
import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

import jaxgru
from benchmarks import hlo
from benchmarks.timing import BOTH, FORWARD
from jaxgru import backends

#: The description of an absent GPU for XLA: an NVIDIA H100, 80 GB.
TARGET = Path(__file__).with_name("h100.textproto")
#: B, T, I, H
SIZES = {
    "gpu": tuple((64, 1024, 128, hidden) for hidden in (64, 128, 256, 512, 1024)),
    "tpu": (
        (64, 1024, 128, 256),
        (32, 1000, 10, 128),
        (256, 64, 64, 64),
        (32, 128, 256, 1024),
        (1, 1000, 64, 128),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compile the GRU for an accelerator that need not be present, and describe its program.

    For a GPU, an NVIDIA H100, the table counts the kernels and copies that the host launches, with
    the loop and, where it fits, with the kernel for a whole sequence. It also counts the kernels
    that the compiler makes, and lists registers, spills and shared memory of the kernel for a whole
    sequence. The compile time is that of the gradient. It is measured with eight more time steps,
    because the process has not compiled any program of that length before. This needs no driver,
    only the packages that you install by `pip install "jax[cuda13]" absl-py`.

    For a TPU v5e, the table has the cycles that the compiler expects. For kernels it has the
    instruction bundles, each of which takes at least one cycle. This needs the packages that
    you install by `pip install "jax[tpu]"`.

    Nothing runs, so the only times are those of compilation. All networks are float32 and take
    their inputs time-major.
    """

    device: Annotated[Literal["gpu", "tpu"], tyro.conf.Positional]
    """The accelerator to compile for."""
    sizes: Annotated[
        tuple[tuple[int, int, int, int], ...], tyro.conf.arg(metavar="B T I H ...")
    ] = ()
    """Batch, time steps, inputs and units; by default those of docs/performance/accelerators.md."""
    json: bool = False
    """Print JSON, not a table."""


class Network(NamedTuple):
    """apply(weights, xs `[T, B, I]`) -> outputs `[T, B, H]`, and the types of the weights."""

    apply: Callable[..., Any]
    weights: Any


def networks(batch: int, steps: int, inputs: int, hidden: int) -> dict[str, Network]:
    """Both forms of the GRU, each with the library that has this form, if it is installed."""
    key, xs = jax.random.key(0), jax.ShapeDtypeStruct((steps, batch, inputs), jnp.float32)
    found = {}
    for after in (True, False):
        weights = jax.eval_shape(
            lambda after=after: jaxgru.gru_init(key, inputs, hidden, reset_after=after)
        )
        name = f"jaxgru, reset {'after' if after else 'before'}"
        found[name] = Network(_outputs, weights)
        try:
            found |= (_linen if after else _haiku)(key, xs, hidden)
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def _outputs(params: Any, xs: jax.Array) -> jax.Array:
    return jax.vmap(lambda xs: jaxgru.scan(params, xs)[1], in_axes=1, out_axes=1)(xs)


def _linen(key, xs, hidden):
    nn = importlib.import_module("flax.linen")
    rnn = nn.RNN(nn.GRUCell(hidden), time_major=True)
    return {"flax.linen, reset after": Network(rnn.apply, jax.eval_shape(rnn.init, key, xs))}


def _haiku(key, xs, hidden):
    hk = importlib.import_module("haiku")

    def run(xs):
        return hk.dynamic_unroll(hk.GRU(hidden), xs, jnp.zeros((xs.shape[1], hidden)))[0]

    net = hk.without_apply_rng(hk.transform(run))
    return {"haiku, reset before": Network(net.apply, jax.eval_shape(net.init, key, xs))}


class Launches(NamedTuple):
    """The kernels and memory copies that the host launches on a GPU."""

    kernels: float
    copies: float


def launches(thunks: str, turns: list[int]) -> tuple[Launches, Launches]:
    """(all launches, those in loops), from XLA's list of thunks and the iterations of each loop.

    A line of the list is a kernel, a copy, or an operation with parts. The parts of a loop, its
    condition and its body, are indented further.
    """
    every, inside = [0.0, 0.0], [0.0, 0.0]
    ahead = iter(turns)
    open_loops: list[tuple[int, int]] = []  # (indentation, turns)
    for line in thunks.splitlines():
        match = re.match(r"( *)\d+: k(\w+)", line)
        if not match:
            continue
        indent, kind = len(match[1]), match[2]
        while open_loops and indent <= open_loops[-1][0]:
            open_loops.pop()
        times = 1
        for _, count in open_loops:
            times *= count
        if kind == "While":
            open_loops.append((indent, next(ahead)))
        elif kind not in ("CommandBuffer", "DynamicSliceFusion", "Sequential", "Conditional"):
            what = int("Copy" in kind)
            every[what] += times
            inside[what] += times if open_loops else 0
    assert next(ahead, None) is None, "more loops in the program than in the list"
    return Launches(*every), Launches(*inside)


class Needs(NamedTuple):
    """The most resources of a multiprocessor that any kernel of a program needs."""

    registers: int
    """Registers of a thread."""
    spilled: int
    """Bytes of registers of a thread that are spilled to memory."""
    shared: int
    """Bytes of shared memory, of a CTA."""


def needs(dump: Path) -> Needs:
    """Read what Mosaic GPU wrote about its kernels into a folder. Without kernels it is zeros."""
    reports = "".join(path.read_text() for path in dump.glob("*.ptxas"))
    host = "".join(path.read_text() for path in dump.glob("*.ll"))

    def most(pattern, text):
        return max(map(int, re.findall(pattern, text)), default=0)

    return Needs(
        most(r"Used (\d+) registers", reports),
        most(r"(\d+) bytes spill stores", reports),
        most(r"@mosaic_gpu_get_function\(.*i32 (\d+), i32 \d+\)", host),
    )


H100 = AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
V5E = AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
LOOPS = {"cuda": backends.GPU, "tpu": backends.TPU}
KERNELS = {"cuda": backends.HOPPER, "tpu": backends.TPU_KERNEL}


@contextlib.contextmanager
def _made_for(device: AbstractDevice, kernel: bool) -> Iterator[None]:
    """A context in which programs are compiled for a device, with the kernel if kernel is True."""
    platform = device.platform
    before = backends.PLANS[platform]
    backends.PLANS[platform] = (KERNELS if kernel else LOOPS)[platform]
    jax.clear_caches()
    try:
        with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
            yield
    finally:
        backends.PLANS[platform] = before


def on_gpu(sizes: tuple[int, ...], device: Any, dump: Path) -> Iterator[dict[str, Any]]:
    """Yield launches, memory and compile time of each network and direction."""
    batch, steps, *others = sizes
    _gradients((1, 8, 8, 64), device)  # the first compilation also imports modules
    seconds = _gradients((batch, steps + 8, *others), device)
    forward = Needs(0, 0, 0)
    for name, what, run, types in _programs(sizes, device):
        _empty(dump)
        compiled = _compiled(name, run, types, dump)
        texts = [path.read_text() for path in dump.glob("*thunk_sequence.txt")]
        kernel = needs(dump)
        if what == BOTH:  # its forward kernel may be compiled already, for the row before
            kernel = Needs(*map(max, kernel, forward))
        forward = kernel
        turns = list(hlo.loops(hlo.computations(compiled.as_text() or "")))
        every, inside = launches(max(texts, key=len), turns)
        yield {
            "sizes": sizes,
            "network": name,
            "what": what,
            "kernels a step": inside.kernels / sizes[1],
            "copies a step": inside.copies / sizes[1],
            "launches in all": sum(every),
            "temporary MB": compiled.memory_analysis().temp_size_in_bytes / 1e6,
            "kernels made": len(list(dump.glob("*.ptx"))),
            "compiling s": seconds[name] if what == BOTH else None,
            "registers": kernel.registers,
            "spilled bytes": kernel.spilled,
            "shared KB": kernel.shared / 1e3,
        }


@functools.cache
def _gradients(sizes: tuple[int, ...], device: Any) -> dict[str, float]:
    """The seconds in which the gradient of each network compiles."""
    found = {}
    for name, what, run, types in _programs(sizes, device):
        if what == BOTH:
            start = time.perf_counter()
            _compiled(name, run, types)
            found[name] = time.perf_counter() - start
    return found


def _compiled(name: str, run: Any, types: Any, dump: Path | None = None) -> Any:
    """The compiled program of a network for a GPU. XLA and Mosaic GPU can dump it in a folder."""
    options: dict[str, Any] = {"xla_gpu_autotune_level": 0}  # autotuning would time kernels
    for variable in ("MOSAIC_GPU_DUMP_TO", "MOSAIC_GPU_DUMP_HOST_LLVM"):
        os.environ.pop(variable, None)
    if dump is not None:
        os.environ |= {"MOSAIC_GPU_DUMP_TO": str(dump), "MOSAIC_GPU_DUMP_HOST_LLVM": "1"}
        options |= {"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True}
    with _made_for(H100, kernel=name.endswith("kernel")):
        return run.trace(*types).lower().compile(options)


def on_tpu(sizes: tuple[int, ...], device: Any, dump: Path) -> Iterator[dict[str, Any]]:
    """Yield the compiler's estimate of cycles for each network and direction.

    The estimate for a kernel is one cycle for each of its instruction bundles.
    """
    for name, what, run, types in _programs(sizes, device):
        _empty(dump)
        with _made_for(V5E, kernel=name.endswith("kernel")):
            compiled = run.trace(*types).lower().compile()
        cycles = hlo.total(hlo.computations(compiled.as_text() or ""), _cycles)
        steps = sum(
            a_step(path.name, path.read_text()) for path in dump.glob("*[0-9]-final_bundles.txt")
        )
        cycles += steps * sizes[1]
        yield {
            "sizes": sizes,
            "network": name,
            "what": what,
            "million cycles": cycles / 1e6,
            "cycles a step": cycles / sizes[1],
            "bundles a step": steps,
        }


def a_step(name: str, text: str) -> float:
    """The instruction bundles that a kernel needs for a time step of all examples.

    They are the bundles of its innermost loop with products. name is that of the file with the
    final bundles, which contains the name of the kernel. The result is 0 for other programs.
    """
    match = re.search(r"jaxgru_(\d+)_parts_(\d+)_steps", name)
    if not match:
        return 0
    counts, depth, count, products = [], None, 0, False
    for line in text.splitlines():
        bundle = re.match(r" *0x[0-9a-f]+ +(\w\w)? *: (>*) *\{", line)
        if bundle is None:
            continue
        label, level = bundle[1], len(bundle[2])
        if depth is not None and (label or level < depth):
            counts += [count] if products and level <= depth else []
            depth = None
        if label == "LB":
            depth, count, products = level, 0, False
        count += 1
        products |= "vmatmul" in line
    (count,) = counts
    return count * int(match[1]) / int(match[2])


def _cycles(line: str) -> int:
    # The estimate of a loop is for a single iteration, which is counted by its parts.
    found = None if re.search(r" (while|call)\(", line) else _CYCLES.search(line)
    return int(found[1]) if found else 0


_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _programs(sizes, device):
    """The programs of every network, and those of jaxgru also with the kernel."""
    batch, steps, inputs, _ = sizes
    found = networks(*sizes)
    ours = [name for name in found if name.startswith("jaxgru")]
    found |= {f"{name}, kernel": found[name] for name in ours}
    place = SingleDeviceSharding(device)
    for name, network in found.items():

        def both(weights, xs, network=network):
            loss = lambda *args: jnp.sum(network.apply(*args) ** 2)  # noqa: E731
            return jax.grad(loss, argnums=(0, 1))(weights, xs)

        arrays = (network.weights, jax.ShapeDtypeStruct((steps, batch, inputs), jnp.float32))
        types = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arrays
        )
        for what, run in ((FORWARD, network.apply), (BOTH, both)):
            yield name, what, jax.jit(run, out_shardings=place), types


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each size, network and direction, as Markdown."""
    columns = list(rows[0])[3:]
    lines = [f"| B, T, I, H | | | {' | '.join(columns)} |", "| --- " * (len(columns) + 3) + "|"]
    for row in rows:
        numbers = " | ".join("" if row[k] is None else f"{row[k]:.3g}" for k in columns)
        case = ", ".join(map(str, row["sizes"]))
        lines.append(f"| {case} | {row['network']} | {row['what']} | {numbers} |")
    return "\n".join(lines)


def _device(kind: str, dump: str) -> Any:
    """A device that need not be present. Its compiler writes into a folder."""
    if kind == "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        where = {"target_config": TARGET.read_text(), "topology": "1x1x1"}
        return topologies.get_topology_desc(platform="cuda", **where).devices[0]
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"
    os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        " --xla_jf_dump_llo_pass_label_regex=final_bundles"
    )
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.ahead")
    jax.config.update("jax_platforms", "cpu")  # the weights are drawn on it
    with tempfile.TemporaryDirectory() as dump:
        try:
            device = _device(config.device, dump)
        except Exception as error:  # a missing plugin may raise anything
            extra = {"gpu": '"jax[cuda13]" absl-py', "tpu": '"jax[tpu]"'}[config.device]
            print(f"error: no compiler for a {config.device}: pip install {extra} ({error})")
            return 2
        rows = []
        on_device = {"gpu": on_gpu, "tpu": on_tpu}[config.device]
        for sizes in config.sizes or SIZES[config.device]:
            for row in on_device(sizes, device, Path(dump)):
                rows.append(row)
                print(json.dumps(row) if config.json else row, file=sys.stderr, flush=True)
    name = {"gpu": "an NVIDIA H100", "tpu": "a TPU v5e"}[config.device]
    print(
        json.dumps(rows) if config.json else f"jax {jax.__version__}, for {name}\n\n{table(rows)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
