"""Check and time jaxgru on this accelerator: `python -m benchmarks.gpu_check --help`."""

import dataclasses
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax

import jaxgru
from benchmarks import peers, report
from benchmarks.timing import BOTH, FORWARD, Row, interleave, wait
from benchmarks.versions import versions
from experiments.common.machine import machine
from jaxgru import backends

#: B, T, I, H
SIZES = (
    (64, 1024, 128, 64),
    (64, 1024, 128, 128),
    (64, 1024, 128, 256),
    (64, 1024, 128, 512),
    (64, 1024, 128, 1024),
    (32, 1000, 10, 128),
    (1024, 64, 64, 256),
    (1, 4096, 64, 128),
)
#: Small sizes, to try the command without an accelerator.
TINY = ((3, 19, 5, 8), (2, 9, 20, 16))
NUMBERS, TINY_NUMBERS = (16, 257, 24, 96), (2, 19, 5, 8)


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare jaxgru on this machine's accelerator with float64, then time it beside its peers.

    Both parts run the loop, and the kernel for Hopper GPUs where it fits. The first part runs every
    cell with lengths, resets and carries, in both directions, with checkpoints and in each dtype.
    It compares outputs and gradients with a plain loop in float64 on the processor. A plain loop on
    the accelerator has an error too, and the error of jaxgru may be at most twice as large. The
    second part times the libraries that are installed. The exit code is 1 if a number is wrong.
    """

    sizes: Annotated[
        tuple[tuple[int, int, int, int], ...], tyro.conf.arg(metavar="B T I H ...")
    ] = ()
    """Batch, time steps, inputs and units to time; by default those of
    docs/performance/accelerators.md."""
    check: bool = True
    """Whether to compare numbers before timing."""
    tiny: bool = False
    """Small sizes and one cell, to try the command on a CPU."""
    rounds: int = 7
    """Turns that every contestant gets."""
    seconds: float = 330.0
    """No further size is timed after this many seconds."""


def plain(params: Any, xs: jax.Array, carry: Any, length: Any, reset: Any, *, reverse: bool) -> Any:
    """The outputs of `jaxgru.scan`, computed by a loop over `jaxgru.step`."""
    real = jnp.arange(xs.shape[0]) < length
    starts = jnp.append(reset[1:] & real[1:], False) if reverse else reset

    def body(carry, inputs):
        x, start, real = inputs
        after, y = jaxgru.step(params, carry, x, reset=start)
        carry = jax.tree.map(lambda a, b: jnp.where(real, a, b), after, carry)
        return carry, jnp.where(real, y, jnp.zeros_like(y))

    return lax.scan(body, carry, (xs, starts, real), reverse=reverse)[1]


class Options(NamedTuple):
    reverse: bool = False
    checkpoint: int | None = None
    precision: str | None = None
    dtype: str = "float32"
    sizes: tuple[int, int, int, int] = NUMBERS


BRIEF = {"float32": Options(), "float32, reverse": Options(reverse=True)}
OPTIONS = BRIEF | {
    "float32, checkpoint": Options(checkpoint=50),
    "float32, highest precision": Options(precision="highest"),
    "bfloat16": Options(dtype="bfloat16"),
    "float16": Options(dtype="float16"),
}
#: One CTA works on the first, and the four of a cluster on the second. Two work on all others.
WIDTHS = {
    "float32, narrow": Options(sizes=(20, 65, 24, 40)),
    "float32, wide": Options(sizes=(20, 65, 24, 200)),
}
CELLS: dict[str, tuple[Callable[..., Any], dict[str, Options]]] = {
    "GRU, reset after": (functools.partial(jaxgru.gru_init, reset_after=True), OPTIONS | WIDTHS),
    "LSTM": (jaxgru.lstm_init, BRIEF),
    "GRU": (jaxgru.gru_init, OPTIONS | WIDTHS),
    "Elman": (jaxgru.elman_init, BRIEF),
    "minimal GRU": (jaxgru.min_gru_init, BRIEF),
}
PLANS = {"loop": backends.GPU, "kernel": backends.HOPPER}


class Found(NamedTuple):
    """Errors. Each is the largest over outputs and gradients, relative to their largest entries."""

    case: str
    errors: dict[str, float]
    """The error of each plan."""
    allowed: float


def numbers(config: Config) -> Iterator[Found]:
    """Check every cell with all of its options. Their programs compile in parallel."""
    cells = list(CELLS.items())[: 1 if config.tiny else None]
    cases = [
        (f"{cell}, {name}", init, options._replace(sizes=TINY_NUMBERS) if config.tiny else options)
        for cell, (init, every) in cells
        for name, options in every.items()
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda case: _number(*case), cases)


def _number(case, init, options):
    batch, steps, inputs, hidden = options.sizes
    dtype = options.dtype
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 5)
        xs = jax.random.normal(keys[0], (batch, steps, inputs))
        lengths = jax.random.randint(keys[1], (batch,), 0, steps + 1).at[0].set(steps)
        resets = jax.random.bernoulli(keys[2], 0.05, (batch, steps))
        params = init(keys[3], inputs, hidden, dtype=dtype)
        carry = jax.tree.map(
            lambda a: 0.5 * jax.random.normal(keys[4], (batch, *a.shape), a.dtype),
            jaxgru.initial_carry(params),
        )
        data = (xs.astype(dtype), carry, lengths, resets)
        simple = functools.partial(plain, reverse=options.reverse)
        ours = functools.partial(_ours, options.reverse, options.checkpoint)
        wide = _on_cpu((params, data), "float64")
        exact = _gradients(None, simple, wide[0], wide[1], "highest")
        errors = {
            name: _error(_gradients(plan, ours, params, data, options.precision), exact)
            for name, plan in PLANS.items()
        }
        rounded = _error(_gradients(None, simple, params, data, options.precision), exact)
    return Found(case, errors, 2 * rounded + float(jnp.finfo(dtype).eps))


def _ours(reverse, checkpoint, params, xs, carry, length, reset):
    options = {"length": length, "reset": reset, "reverse": reverse, "checkpoint": checkpoint}
    return jaxgru.scan(params, xs, carry, **options)[1]


def _gradients(plan, run, params, data, precision):
    """The outputs, and the gradients of params, inputs and carries."""
    xs, carry, lengths, resets = data

    def loss(params, xs, carry):
        ys = jax.vmap(lambda *row: run(params, *row))(xs, carry, lengths, resets)
        weights = jnp.sin(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
        return jnp.sum((ys * weights).astype(jnp.promote_types(ys.dtype, jnp.float32))), ys

    def both(*args):
        (_, ys), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
        return ys, grads

    with jax.default_matmul_precision(precision):
        compiled = lowered(plan, both, params, xs, carry).compile()
    return jax.device_get(compiled(params, xs, carry))


_LOWERING = threading.Lock()


def lowered(plan: backends.Plan | None, run: Callable[..., Any], *args: Any) -> Any:
    """The program by a plan for GPUs. The plan is chosen while the program is lowered."""
    with _LOWERING:
        before = backends.PLANS["cuda"]
        backends.PLANS["cuda"] = plan or before
        try:
            return jax.jit(run).lower(*args)
        finally:
            backends.PLANS["cuda"] = before


def _on_cpu(tree, dtype):
    place = jax.devices("cpu")[0]

    def put(a):
        wide = np.issubdtype(a.dtype, np.integer) or a.dtype == bool
        return jax.device_put(np.asarray(a) if wide else np.asarray(a, dtype), place)

    return jax.tree.map(put, tree)


def _error(found, exact):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(a, np.float64) - b)) / max(np.max(np.abs(b)), 1e-30))
        for a, b in pairs
    )


def times(config: Config) -> Iterator[Row]:
    """Time forward, and forward and backward, of all installed libraries."""
    start = time.perf_counter()
    for sizes in config.sizes or (TINY if config.tiny else SIZES):
        if time.perf_counter() - start > config.seconds:
            print("the rest is left out: no time is left", file=sys.stderr)
            return
        forward, both = {}, {}
        for name, (run, pull) in contestants(sizes).items():
            forward[name], both[name] = run, pull
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # compiles in parallel
            list(pool.map(lambda call: call(), [*forward.values(), *both.values()]))
        problem = peers.problem("gru_after", *sizes)
        for name, (run, pull) in _cudnn(problem).items():
            forward[name], both[name] = run, pull
        case = "B={} T={} I={} H={}".format(*sizes)
        yield Row("accelerator", case, FORWARD, "s", interleave(forward, config.rounds))
        yield Row("accelerator", case, BOTH, "s", interleave(both, config.rounds))


def contestants(sizes: tuple[int, int, int, int]) -> dict[str, tuple[Any, Any]]:
    """(forward, forward and backward) by name. Only haiku resets before; jaxgru runs both forms."""
    after, before = (peers.problem(kind, *sizes) for kind in ("gru_after", "gru_before"))
    found = {}
    for form, problem in (("", after), (", reset before", before)):
        xs = jnp.asarray(problem.xs.swapaxes(0, 1))
        cotangent = jnp.asarray(problem.cotangent.swapaxes(0, 1))
        for plan in PLANS:
            name = ("jaxgru" if plan == "kernel" else "jaxgru, loop") + form
            found[name] = _compiled(PLANS[plan], problem.params, xs, cotangent)
    for name in ("flax.linen", "flax.nnx", "equinox", "haiku"):
        try:
            model = peers.build(name, before if name == "haiku" else after)
        except ImportError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        found[name] = (model.forward, model.gradient)
    return found


def _compiled(plan, params, xs, cotangent):
    apply = functools.partial(peers.batched, time_major=True)
    calls = []
    for run, args in ((apply, (params, xs)), (peers.pullback(apply), (params, xs, cotangent))):
        program = functools.cache(lambda run=run, args=args: lowered(plan, run, *args).compile())
        calls.append(lambda program=program, args=args: wait(program(), *args))
    return tuple(calls)


def _cudnn(problem):
    """The programs of torch on the same GPU, by cuDNN, with products in TF32 and in float32."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    _, _, inputs, hidden = problem.sizes
    module = torch.nn.GRU(inputs, hidden).cuda()
    xs = torch.from_numpy(problem.xs.swapaxes(0, 1).copy()).cuda().requires_grad_()
    cotangent = torch.from_numpy(problem.cotangent.swapaxes(0, 1).copy()).cuda()

    def forward(exact):
        torch.backends.cudnn.allow_tf32 = not exact
        with torch.no_grad():
            module(xs)
        torch.cuda.synchronize()

    def both(exact):
        torch.backends.cudnn.allow_tf32 = not exact
        xs.grad = None
        module.zero_grad()
        module(xs)[0].backward(cotangent)
        torch.cuda.synchronize()

    return {
        name: (functools.partial(forward, exact), functools.partial(both, exact))
        for name, exact in (("torch", False), ("torch float32", True))
    }


def main() -> int:
    config = tyro.cli(Config, prog="python -m benchmarks.gpu_check")
    print(f"{machine()}; {versions()}; {jax.devices()[0].device_kind}", flush=True)
    wrong = 0
    for case, errors, allowed in numbers(config) if config.check else ():
        for plan, error in errors.items():
            right = error <= allowed
            wrong += not right
            verdict = "" if right else ", WRONG"
            print(f"{case}, {plan}: {error:.1e} of {allowed:.1e} allowed{verdict}", flush=True)
    _, pull = contestants((TINY if config.tiny else SIZES)[0])["jaxgru"]
    bits = [jax.tree.leaves(pull()) for _ in range(3)]
    same = all(
        np.array_equal(a, b) for other in bits[1:] for a, b in zip(bits[0], other, strict=True)
    )
    print(f"three runs have the same bits: {'yes' if same else 'NO'}", flush=True)
    rows = []
    for row in times(config):
        rows.append(row)
        every = ", ".join(f"{name} {1e3 * t.median:.3g}" for name, t in row.values.items())
        print(f"{row.case}, {row.what}, ms: {every}", file=sys.stderr, flush=True)
    print(report.markdown(rows))
    if config.check:
        print(f"{wrong} of the numbers are wrong" if wrong else "all numbers are right")
    return int(bool(wrong) or not same)


if __name__ == "__main__":
    sys.exit(main())
