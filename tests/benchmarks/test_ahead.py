"""The parser of compiled programs, on texts in the form that XLA writes."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ahead, hlo


@pytest.fixture(autouse=True)
def x32():
    """Everything is compiled in float32, whatever the environment says."""
    with jax.enable_x64(False):
        yield


COST = r'backend_config={"estimated_cycles":"\1"}'
PROGRAM = """
%inner.1 (p: f32[4]) -> f32[4] {
  %a = f32[4]{0} add(%p, %p), @7
}
%cond.1 (p: s32[]) -> pred[] {
  %c = s32[] constant(5)
  %r = pred[] compare(%p, %c), direction=LT
}
%compared (p: s32[]) -> pred[] {
  %c = s32[] constant(3)
  %r = pred[] compare(%p, %c), direction=LT
}
%cond.2 (p: s32[]) -> pred[] {
  %r = pred[] fusion(%p), kind=kLoop, calls=%compared
}
%body.2 (p: f32[4]) -> f32[4] {
  %x = f32[4]{0} while(%p), condition=%cond.2, body=%inner.1, @7
  %y = f32[4]{0} multiply(%x, %x), @100
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %k = f32[4]{0} call(%p), to_apply=%inner.1, @7
  %v = f32[4]{0} while(%k), condition=%cond.1, body=%body.2
  %w = while(%v), condition=%cond.1, body=%inner.1, backend_config={"known_trip_count":{"n":"2"}}
}
"""


def test_cycles_count_at_every_turn():
    program = hlo.computations(re.sub(r"@(\d+)", COST, PROGRAM))
    assert list(hlo.loops(program)) == [5, 3, 2]
    assert hlo.total(program, ahead._cycles) == 7 + 5 * (3 * 7 + 100) + 2 * 7


THUNKS = """
000: kCommandBuffer [source       | next=009 (1)]
    001: kCustomKernel [source       | next=002 (1)] wrapped_transpose grid: [16384, 1, 1]
    002: kCopy         [prev=001 (1) | sink        ] kCopy
009: kWhile         [prev=000 (1) | next=029 (1)]
condition:
    010: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
  body:
    011: kDynamicSliceFusion [source       | next=000 (1)] params=1, results=1
        012: kCopy [source | sink] kCopy
    013: kWhile             [prev=000 (1) | next=022 (1)]
condition:
        014: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1]
      body:
        015: kCustomKernel [source | sink] gemm grid: [1, 1, 1]
029: kGemm  [prev=009 (1) | sink        ] gemm
"""


def test_launches_count_at_every_turn():
    every, inside = ahead.launches(THUNKS, [10, 3])
    assert inside == (10 + 10 * 3 * 2, 10)
    assert every == (inside.kernels + 2, inside.copies + 1)
    with pytest.raises(AssertionError, match="more loops"):
        ahead.launches(THUNKS, [10, 3, 2])


BUNDLES = """
LB: loop body
   0x1   :  { %1 = vsyncpa [#allocation5], 0 }
   0x2 LB: > { %2 = sadd.s32 1, 2 }
   0x3   : > { %3 = vmatmul.bf16 }
   0x4 LB: >> { %4 = vmatmul.bf16 }
   0x5   : >> { %5 = vadd.f32 }
   0x6   : >> { %6 = sbr.rel }
   0x7   : > { %7 = vadd.f32 }
   0x8 LB: >> { %8 = vst }
   0x9 PF: > { %9 = vst }
"""


def test_bundles_of_a_step_are_those_of_the_loop_over_time():
    name = "1795-jaxgru_2_parts_4_steps.1-01-final_bundles.txt"
    assert ahead.a_step(name, BUNDLES) == 3 * 2 / 4
    assert ahead.a_step("1795-fusion.5-01-final_bundles.txt", BUNDLES) == 0
    with pytest.raises(ValueError, match="values to unpack"):
        ahead.a_step(name, BUNDLES.replace("LB: >> { %4", "  : > { %4"))


PTXAS = """ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
    0 bytes stack frame, {spilled} bytes spill stores, 24 bytes spill loads
ptxas info    : Used {registers} registers, used 2 barriers, 1 bytes smem
"""
HOST = "  %4 = call ptr @mosaic_gpu_get_function(ptr %3, ptr @kernel_name, i32 {shared}, i32 4)\n"


def test_needs_are_the_most_of_any_kernel(tmp_path):
    assert ahead.needs(tmp_path) == (0, 0, 0)
    for name, (registers, spilled, shared) in {"one": (90, 16, 7000), "two": (122, 0, 900)}.items():
        report = PTXAS.format(registers=registers, spilled=spilled)
        (tmp_path / f"{name}.ptxas").write_text(report)
        (tmp_path / f"{name}.ll").write_text(HOST.format(shared=shared))
    assert ahead.needs(tmp_path) == (122, 16, 7000)


def test_the_networks_of_a_table_are_what_they_are_called():
    for name, network in ahead.networks(2, 3, 4, 5).items():
        xs = jax.ShapeDtypeStruct((3, 2, 4), jnp.float32)
        assert jax.eval_shape(network.apply, network.weights, xs).shape == (3, 2, 5), name


def test_loops_of_a_real_program():
    """The compiler for CPUs is always present. The program is a loop in a loop."""

    def run(x):
        turn = lambda _, x: jax.lax.fori_loop(0, 4, lambda _, x: jnp.sin(x @ x), x)  # noqa: E731
        return jax.lax.fori_loop(0, 6, turn, x)

    compiled = jax.jit(run).lower(jnp.ones((20, 20), jnp.float32)).compile()
    assert sorted(hlo.loops(hlo.computations(compiled.as_text() or ""))) == [4, 6]


def test_the_gpu_is_described():
    assert "H100" in Path(ahead.TARGET).read_text()
