"""The suites. Each of them yields rows, one for every case and quantity."""

import functools
import gc
import importlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxgru
from benchmarks import by_hand, peers
from benchmarks.newton import crossover, newton
from benchmarks.own import own
from benchmarks.peers import GRID, SMALL_GRID, Sizes
from benchmarks.seeds import seeds
from benchmarks.timing import BOTH, FORWARD, Row, Times, interleave, summary, temporary, wait


def grid(rounds: int) -> Iterator[Row]:
    """The GRU with the reset gate after the product, against every library that has it."""
    yield from _compare("grid", "gru_after", GRID, rounds)


def reset_before(rounds: int) -> Iterator[Row]:
    """The GRU with the reset gate before the product, the default form."""
    yield from _compare("reset_before", "gru_before", GRID, rounds)


def lstm(rounds: int) -> Iterator[Row]:
    """The LSTM."""
    yield from _compare("lstm", "lstm", SMALL_GRID, rounds)


def elman(rounds: int) -> Iterator[Row]:
    """The plain RNN."""
    yield from _compare("elman", "elman", SMALL_GRID, rounds)


def layers(rounds: int) -> Iterator[Row]:
    """A Stack of two and a Bidirectional, against flax.linen."""
    nn = importlib.import_module("flax.linen")
    for sizes in SMALL_GRID:
        below = peers.problem("gru_after", *sizes)
        above = peers.problem("gru_after", *sizes[:2], sizes[3], sizes[3])
        one, other = peers.linen_rnn(below), peers.linen_rnn(above)
        ours = jaxgru.Stack((below.params, above.params))

        def stacked(weights, xs, one=one[0], other=other[0]):
            return other.apply(weights[1], one.apply(weights[0], xs))

        theirs = peers.jax_model(stacked, (one[1], other[1]), below)
        yield from _pair("stack of two", sizes, below, ours, theirs, rounds)

        wide = below._replace(cotangent=np.concatenate([below.cotangent] * 2, -1))
        both = nn.Bidirectional(one[0], one[0].clone())
        cell = one[1]["params"]["cell"]
        variables = {"params": {"forward_rnn": {"cell": cell}, "backward_rnn": {"cell": cell}}}
        theirs = peers.jax_model(both.apply, variables, wide)
        ours = jaxgru.Bidirectional(below.params, below.params)
        yield from _pair("bidirectional", sizes, wide, ours, theirs, rounds)


def batch(rounds: int) -> Iterator[Row]:
    """`vmap` of `scan`, batch-major and time-major, against a GRU batched by hand."""
    for sizes in GRID:
        problem = peers.problem("gru_after", *sizes)
        for time_major in (False, True):
            turn = (lambda a: a) if time_major else (lambda a: a.swapaxes(0, 1))

            def apply(params, xs, turn=turn):
                return turn(by_hand.forward(params, turn(xs)))

            def pull(params, xs, ct, turn=turn):
                d_params, d_xs = by_hand.gradient(params, turn(xs), turn(ct))
                return d_params, turn(d_xs)

            xs, ct = jnp.asarray(problem.xs), jnp.asarray(problem.cotangent)
            if time_major:
                xs, ct = xs.swapaxes(0, 1).copy(), ct.swapaxes(0, 1).copy()
            ours = functools.partial(peers.batched, time_major=time_major)
            forward = {"jaxgru": jax.jit(ours), "by hand": jax.jit(apply)}
            both = {"jaxgru": jax.jit(peers.pullback(ours)), "by hand": jax.jit(pull)}
            peers.assert_equal(*(f(problem.params, xs) for f in forward.values()))
            peers.assert_equal(*(f(problem.params, xs, ct)[1] for f in both.values()))
            case = f"{peers.name(sizes)}, {'time' if time_major else 'batch'}-major"
            args = (problem.params, xs)
            yield Row("batch", case, FORWARD, "s", interleave(_calls(forward, *args), rounds))
            yield Row("batch", case, BOTH, "s", interleave(_calls(both, *args, ct), rounds))


def population(rounds: int, members: int = 64) -> Iterator[Row]:
    """Many small GRUs by `vmap` over params, against flax by `vmap` and against a loop."""
    size, width, steps, inputs = 32, 16, 100, 8
    problems = peers.problem("gru_after", width, steps, inputs, size)
    keys = jax.random.split(jax.random.key(1), members)

    params = jax.vmap(lambda key: peers.draw_gru(key, inputs, size, reset_after=True))(keys)
    xs = jax.random.normal(jax.random.key(2), (members, width, steps, inputs))
    ct = jax.random.normal(jax.random.key(3), (members, width, steps, size))
    rnn = peers.linen_rnn(problems)[0]
    variables = jax.vmap(lambda p: peers.linen_rnn(problems._replace(params=p))[1])(params)
    single = [jax.tree.map(lambda a, k=k: a[k], (params, xs, ct)) for k in range(members)]

    case = f"{members} GRUs, B={width} T={steps} I={inputs} H={size}"
    for what, ours, theirs, count in (
        (FORWARD, peers.batched, rnn.apply, 2),
        (BOTH, peers.pullback(peers.batched), peers.pullback(rnn.apply), 3),
    ):
        args = (xs, ct)[: count - 1]
        together = {"jaxgru": (ours, params), "flax.linen": (theirs, variables)}
        calls: dict[str, Callable[[], Any]] = {
            name: functools.partial(wait, jax.jit(jax.vmap(run)), weights, *args)
            for name, (run, weights) in together.items()
        }
        peers.assert_equal(*(jax.tree.leaves(call())[-1] for call in calls.values()))
        alone = [functools.partial(jax.jit(ours), *member[:count]) for member in single]
        calls["a loop over jaxgru"] = functools.partial(
            wait, lambda alone=alone: [f() for f in alone]
        )
        yield Row("population", case, what, "s", interleave(calls, rounds))


def streaming(rounds: int) -> Iterator[Row]:
    """One step at a time, B=1: the cost of serving, including dispatch."""
    for inputs, hidden in ((64, 128), (256, 512)):
        problem = peers.problem("gru_after", 1, 1, inputs, hidden)
        calls = peers.streams(problem)
        peers.assert_equal(*(call() for call in calls.values()))
        times = interleave(calls, rounds * 5, repeat=200)
        yield Row("streaming", f"I={inputs} H={hidden}", "one step", "s", times)


def compilation(rounds: int) -> Iterator[Row]:
    """The time to trace, lower and compile the gradient, and the sum of all three."""
    order = np.random.default_rng(0)
    for sizes in GRID:
        problem = peers.problem("gru_after", *sizes)
        rnn, variables = peers.linen_rnn(problem)
        args = (jnp.asarray(problem.xs), jnp.asarray(problem.cotangent))

        def build(apply, weights, args=args):
            jax.clear_caches()
            times = [time.perf_counter()]
            traced = jax.jit(peers.pullback(apply)).trace(weights, *args)
            times.append(time.perf_counter())
            lowered = traced.lower()
            times.append(time.perf_counter())
            lowered.compile()
            times.append(time.perf_counter())
            return [*np.diff(times), times[-1] - times[0]]

        runs = {"jaxgru": (peers.batched, problem.params), "flax.linen": (rnn.apply, variables)}
        seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
        for _ in range(max(3, rounds // 2)):
            for name in order.permutation(list(runs)):
                seconds[name].append(build(*runs[name]))
        for k, stage in enumerate(("tracing", "lowering", "XLA", "all")):
            times = {name: summary([s[k] for s in every]) for name, every in seconds.items()}
            yield Row("compilation", peers.name(sizes), stage, "s", times)


def memory(rounds: int) -> Iterator[Row]:
    """Temporary memory of the compiled gradient, and how `checkpoint` bounds it."""
    del rounds
    for sizes in GRID:
        problem = peers.problem("gru_after", *sizes)
        rnn, variables = peers.linen_rnn(problem)
        args = (problem.xs, problem.cotangent)
        found = {
            "jaxgru": _temporary(peers.pullback(peers.batched), problem.params, *args),
            "flax.linen": _temporary(peers.pullback(rnn.apply), variables, *args),
        }
        yield Row("memory", peers.name(sizes), "temporary memory", "MB", found)
    for steps in (1000, 10_000, 100_000):
        batch, inputs, hidden = 8, 8, 32
        params = peers.problem("gru_after", batch, 1, inputs, hidden).params
        xs = jax.ShapeDtypeStruct((steps, batch, inputs), jnp.float32)
        segment = next(k for k in range(math.isqrt(steps), 0, -1) if steps % k == 0)

        def loss(params, xs, checkpoint):
            def run(xs):
                return jaxgru.scan(params, xs, checkpoint=checkpoint)[0]

            return jnp.sum(jax.vmap(run, in_axes=1)(xs))

        found = {
            name: _temporary(jax.grad(functools.partial(loss, checkpoint=k)), params, xs)
            for name, k in (("jaxgru", segment), ("without checkpoint", None))
        }
        case = f"{peers.name((batch, steps, inputs, hidden))}, checkpoint={segment}"
        yield Row("memory", case, "temporary memory", "MB", found)


def length(rounds: int) -> Iterator[Row]:
    """The cost of one time step, from short sequences to long ones."""
    for steps in (100, 1000, 10_000, 100_000):
        sizes = (8, steps, 8, 32)
        problem = peers.problem("gru_after", *sizes)
        model = peers.build("jaxgru", problem)
        assert model.gradient is not None
        for what, call in ((FORWARD, model.forward), (BOTH, model.gradient)):
            times = interleave({"jaxgru": call}, rounds, repeat=max(1, 10_000 // steps))["jaxgru"]
            per_step = Times(*(1e6 * t / steps for t in times))
            yield Row("length", peers.name(sizes), what, "us a step", {"jaxgru": per_step})


SUITES: dict[str, Callable[[int], Iterator[Row]]] = {
    suite.__name__: suite
    for suite in (
        grid,
        reset_before,
        lstm,
        elman,
        layers,
        own,
        batch,
        population,
        seeds,
        streaming,
        compilation,
        memory,
        length,
        newton,
    )
}

#: Suites that are not drawn as ratios.
PICTURES: dict[str, Callable[[Path, str, list[Row]], None]] = {"newton": crossover}


def _compare(suite: str, kind: str, cases: Sizes, rounds: int) -> Iterator[Row]:
    for sizes in cases:
        problem = peers.problem(kind, *sizes)
        models = {}
        for name in ("jaxgru", "jaxgru time-major", *peers.PEERS[kind]):
            try:
                models[name] = peers.build(name, problem)
            except ImportError as error:
                print(f"{name} is left out: {error}")
        _agree(models)
        if kind == "gru_after":  # haiku has only the other form, with other weights
            models["haiku"] = peers.build("haiku", peers.problem("gru_before", *sizes))
        forward = {name: model.forward for name, model in models.items()}
        both = {name: m.gradient for name, m in models.items() if m.gradient is not None}
        if kind == "gru_after":
            forward["the limit"], both["the limit"] = _limits(problem)
        yield Row(suite, peers.name(sizes), FORWARD, "s", interleave(forward, rounds))
        yield Row(suite, peers.name(sizes), BOTH, "s", interleave(both, rounds))
        del models, forward, both
        gc.collect()


def _pair(what, sizes, problem, params, theirs, rounds) -> Iterator[Row]:
    ours = peers.jax_model(peers.batched, params, problem)
    models = {"jaxgru": ours, "flax.linen": theirs}
    _agree(models)
    case = f"{what}, {peers.name(sizes)}"
    forward = {name: model.forward for name, model in models.items()}
    both = {name: model.gradient for name, model in models.items() if model.gradient}
    yield Row("layers", case, FORWARD, "s", interleave(forward, rounds))
    yield Row("layers", case, BOTH, "s", interleave(both, rounds))


def _agree(models: dict[str, peers.Model]) -> None:
    """Raise unless all have the same outputs and the same gradients of the inputs."""
    for part in ("forward", "gradient"):
        found = []
        for model in models.values():
            call = getattr(model, part)
            if call is not None:
                value = np.asarray(call())
                found.append(value.swapaxes(0, 1) if model.time_major else value)
        peers.assert_equal(*found)


def _calls(runs: dict[str, Callable[..., Any]], *args: Any) -> dict[str, Callable[[], Any]]:
    return {name: functools.partial(wait, run, *args) for name, run in runs.items()}


def _limits(problem: peers.Problem) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Only the matrix products of the forward pass, and those of both passes."""
    batch, steps, inputs, hidden = problem.sizes
    xs = jnp.asarray(problem.xs).reshape(-1, inputs)
    w, u = problem.params.w_ih.reshape(inputs, -1), problem.params.w_hh.reshape(hidden, -1)
    hs = jnp.ones((batch * steps, hidden))

    def chain(rows, w):
        """Run T dependent products, in the better of two layouts, and keep the state small."""
        if w.shape[0] < 768:
            h = jnp.ones((rows, w.shape[0]))
            return lax.fori_loop(0, steps, lambda _, h: 1e-3 * (h @ w)[:, : h.shape[1]], h)
        h, w = jnp.ones((w.shape[0], rows)), w.T
        return lax.fori_loop(0, steps, lambda _, h: 1e-3 * (w @ h)[: h.shape[0]], h)

    def project(xs, w):  # the pieces stay in cache
        rows = xs.shape[0] // steps * max(1, min(steps, 512 // batch))
        while xs.shape[0] % rows:
            rows -= 1
        return lax.map(lambda x: (x @ w).max(), xs.reshape(-1, rows, xs.shape[1]))

    @jax.jit
    def forward(xs, w, u):
        return project(xs, w), chain(batch, u)

    @jax.jit
    def both(xs, w, u, hs):
        gates = jnp.ones((batch, 3 * hidden))

        def back(_, g):
            return jnp.tile(1e-3 * (g @ u.T), 3)

        def weights(state, inputs):
            x, h = inputs
            d = jnp.broadcast_to(h[:, :1], (h.shape[0], 3 * hidden))
            return (state[0] + x.T @ d, state[1] + h.T @ d), (d @ w.T).max()

        rows = max(1, min(steps, 512 // batch))
        while steps % rows:
            rows -= 1
        pieces = (xs.reshape(-1, rows * batch, inputs), hs.reshape(-1, rows * batch, hidden))
        sums = lax.scan(weights, (jnp.zeros_like(w), jnp.zeros_like(u)), pieces)
        return forward(xs, w, u), lax.fori_loop(0, steps, back, gates), sums

    return (
        lambda: jax.block_until_ready(forward(xs, w, u)),
        lambda: jax.block_until_ready(both(xs, w, u, hs)),
    )


def _temporary(run: Callable[..., Any], *args: Any) -> Times:
    return temporary(jax.jit(run).lower(*args).compile())
