"""What the compiler sends between devices for a wide GRU: `python -m benchmarks.collectives`."""

import collections
import dataclasses
import functools
import json
import math
import os
import re
import sys
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import Array
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import jaxgru
from benchmarks import hlo
from benchmarks.timing import BOTH, FORWARD

DEVICES = 8
OPERATIONS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
WIDTHS |= {"f64": 8, "s64": 8, "u64": 8}

OUTPUT = (P(None, None, "model"), P(None, None, "model"), P(None, "model"), P("model"))
WHOLE = (P(), P(), P(), P())


class Layout(NamedTuple):
    """How devices divide the axes of w_ih [I, G, H], w_hh [H, G, H], b [G, H] and b_hn [H]."""

    specs: tuple[P, P, P, P]
    split: Literal["", "jit", "shard_map"] = ""
    """What splits the batch over the devices, with all weights on each: nothing, jit or we."""


RECOMMENDED = "stored on the output axis, batch split by shard_map"
LAYOUTS = {
    "all weights, output axis": Layout(OUTPUT),
    "w_hh, output axis": Layout((P(), P(None, None, "model"), P(), P())),
    "w_hh, input axis": Layout((P(), P("model"), P(), P())),
    "weights everywhere, batch split by jit": Layout(WHOLE, "jit"),
    "weights everywhere, batch split by shard_map": Layout(WHOLE, "shard_map"),
    RECOMMENDED: Layout(OUTPUT, "shard_map"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Count the collective operations of each layout over devices, in the time loop and outside.

    The command compiles programs but does not run them, for eight devices on the host's processor,
    or for the devices of a TPU that need not be present. So no number here is a time.
    """

    batch: int = 8
    """B, a multiple of 8."""
    steps: int = 64
    """T."""
    inputs: int = 32
    """I."""
    hidden: int = 256
    """H, a multiple of 8."""
    topology: str = ""
    """Compile for a TPU such as v5e:2x2 instead; needs jax[tpu], and JAX_PLATFORMS=cpu."""
    json: bool = False
    """Print JSON, not a table."""


class Count(NamedTuple):
    """The number of operations of each kind, and the bytes of their results on one device."""

    loop: dict[str, int]
    outside: dict[str, int]
    bytes_in_loop: int
    work: float = math.nan
    """Operations of one of the devices over those of a single device. Loop bodies count once."""


def count(text: str) -> Count:
    """Count the collectives of an optimized program. All that a while body calls is in the loop."""
    lines = hlo.computations(text)
    lines.pop(hlo.ENTRY, None)
    calls = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
    reached = set()
    ahead = set(re.findall(r"body=%?([\w.\-]+)", text))
    while ahead:
        reached |= ahead
        ahead = {
            n for c in ahead for line in lines.get(c, ()) for n in calls.findall(line)
        } - reached
    inside, outside, size = collections.Counter(), collections.Counter(), 0
    found = re.compile(rf"= (.*?) ({'|'.join(OPERATIONS)})(?:-start)?\(")
    for name, body in lines.items():
        for match in filter(None, map(found.search, body)):
            (inside if name in reached else outside)[match[2]] += 1
            if name in reached:
                size += _bytes(match[1])
    return Count(dict(inside), dict(outside), size)


def _bytes(shapes: str) -> int:
    parts = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    return sum(WIDTHS[kind] * math.prod(map(int, filter(None, d.split(",")))) for kind, d in parts)


def place(params: Any, mesh: Any, specs: tuple[P, P, P, P]) -> Any:
    """The place of each leaf of params, as params that hold shardings."""
    names = dict(zip(("w_ih", "w_hh", "b", "b_hn"), specs, strict=True))
    given = {f.name for f in dataclasses.fields(params) if getattr(params, f.name) is not None}
    return dataclasses.replace(
        params, **{k: NamedSharding(mesh, v) for k, v in names.items() if k in given}
    )


def measure(config: Config) -> dict[str, dict[str, Count]]:
    """{cell, layout: {what: Count}}."""
    devices = jax.devices()[:DEVICES]
    if config.topology:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=config.topology
        ).devices
    mesh = Mesh(np.array(devices), ("model",), axis_types=(AxisType.Auto,))
    sizes = (jax.random.key(0), config.inputs, config.hidden)
    cells: dict[str, Any] = {
        "GRU": jaxgru.gru_init(*sizes),
        "GRU, reset_after": jaxgru.gru_init(*sizes, reset_after=True),
        "LSTM": jaxgru.lstm_init(*sizes),
    }
    xs = jax.ShapeDtypeStruct((config.batch, config.steps, config.inputs), jnp.float32)
    first = SingleDeviceSharding(devices[0])
    found = {}
    for cell, params in cells.items():
        args = typed((params, xs), jax.tree.map(lambda _: first, (params, xs)))
        alone = {what: _compile(run, args, first)[1] for what, run in _runs(None, "").items()}
        for layout, (specs, split) in LAYOUTS.items():
            where = place(params, mesh, specs)
            batch = NamedSharding(mesh, P("model") if split else P())
            args = typed((params, xs), (where, batch))
            out = batch if split else NamedSharding(mesh, P(None, None, "model"))
            found[f"{cell}; {layout}"] = rows = {}
            for what, run in _runs(mesh, split).items():
                text, work = _compile(run, args, out if what == FORWARD else where)
                rows[what] = count(text)._replace(work=work / alone[what])
    return found


def typed(arrays: Any, where: Any) -> Any:
    """The shapes of arrays, to compile for devices that may not be present."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), arrays, where
    )


def _runs(mesh: Any, split: str) -> dict[str, Any]:
    def outputs(params: Any, xs: Array) -> Array:
        return jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1]

    gradient = jax.grad(lambda params, xs: jnp.sum(outputs(params, xs) ** 2))
    if split != "shard_map":
        return {FORWARD: outputs, BOTH: gradient}
    by_hand = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("model")))
    return {
        FORWARD: by_hand(outputs, out_specs=P("model")),
        BOTH: by_hand(gradient, out_specs=P()),
    }


def _compile(run: Any, args: Any, out: Any) -> tuple[str, float]:
    """The optimized program, and its number of operations."""
    compiled = jax.jit(run, out_shardings=out).lower(*args).compile()
    return compiled.as_text() or "", (compiled.cost_analysis() or {})["flops"]


def table(found: dict[str, dict[str, Count]]) -> str:
    """Every cell, layout and direction, as Markdown."""
    lines = [f"| layout | | {' | '.join(OPERATIONS)} | bytes a step | work |", "| --- " * 9 + "|"]
    for layout, runs in found.items():
        for what, c in runs.items():
            kinds = (f"{c.loop.get(k, 0)} + {c.outside.get(k, 0)}" for k in OPERATIONS)
            lines.append(
                f"| {layout} | {what} | {' | '.join(kinds)} | {c.bytes_in_loop:,} | {c.work:.2f} |"
            )
    return "\n".join(lines)


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.collectives")
    # JAX reads this when the first device is requested, not when it is imported.
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={DEVICES}"
    if jax.device_count() < DEVICES:
        print(
            f"{DEVICES} devices needed, {jax.device_count()} there: set XLA_FLAGS={flag}={DEVICES}"
        )
        return 2
    found = measure(config)
    if config.json:
        print(json.dumps({k: {w: c._asdict() for w, c in v.items()} for k, v in found.items()}))
    else:
        where = config.topology or f"{DEVICES} devices"
        print(f"jax {jax.__version__}; {where}, B={config.batch} T={config.steps}")
        print(f"I={config.inputs} H={config.hidden}; in the time loop + outside\n")
        print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
