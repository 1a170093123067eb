"""The documentation: the reference leaves out no public name, and its first examples run."""

import importlib
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxgru
import peers
import recipes
from cases import slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def x32():
    """64-bit types are off, as for users who switch nothing on."""
    with jax.enable_x64(False):
        yield


def documented(module):
    """The names of a module that the pages of the reference describe."""
    found = set()
    for page in (recipes.DOCS / "reference").glob("*.md"):
        for block in re.findall(r"^```{eval-rst}\n(.*?)^```", page.read_text(), re.M | re.S):
            if f".. currentmodule:: {module}\n" in block:
                found |= set(re.findall(r"^\.\. auto(?:function|class):: (\w+)$", block, re.M))
    return found


def defined(module):
    """The public names of a module without `__all__`: what is defined in it."""
    return {
        name
        for name, thing in vars(importlib.import_module(module)).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == module
    }


def test_the_reference_has_every_public_name():
    assert documented("jaxgru") == set(jaxgru.__all__) - {"diagnostics", "interop"}
    assert documented("jaxgru.diagnostics") == set(jaxgru.diagnostics.__all__)
    assert documented("jaxgru.interop") == set(jaxgru.interop.__all__)
    plots = defined("jaxgru.diagnostics.plots")
    assert "half_lives" in plots
    assert documented("jaxgru.diagnostics.plots") == plots


def test_the_reference_has_every_module_for_flax():
    peers.peer("flax")
    modules = {name for name in defined("jaxgru.interop.flax") if name != "Partitioning"}
    assert documented("jaxgru.interop.flax") == modules == {"RNN", "LinenRNN"}


def test_the_index_has_every_function():
    """The reference begins with a table. Types of results are next to the functions."""
    index = (recipes.DOCS / "reference" / "index.md").read_text()
    listed = set(re.findall(r"^   (\w+)$", index, re.M))
    for module in (jaxgru, jaxgru.diagnostics, jaxgru.interop):
        functions = {n for n in module.__all__ if inspect.isfunction(getattr(module, n))}
        assert functions <= listed


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("page", ["README.md", slow("docs/index.md")])
def test_the_first_example(page):
    (block,) = recipes.blocks(ROOT / page)
    names: dict = {}
    exec(compile(block, page, "exec"), names)
    assert names["hs"].shape == (32, 100, 64)


def test_the_recipes_for_acting():
    """docs/recipes/online.md: two functions give the same states, with a reset in between."""
    names = recipes.run("recipes/online.md")
    params, carry = names["params"], jaxgru.initial_carry(names["params"])
    xs = jax.random.normal(jax.random.key(0), (5, 32), "float32")
    reset = jnp.arange(5) == 3
    expected = names["states"](params, xs, carry, reset)
    for t in range(5):
        carry, y = names["act"](params, carry, xs[t], reset[t])
        assert jnp.allclose(y, expected[t], atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
def test_the_recipe_for_populations():
    losses = recipes.run("recipes/populations.md")["losses"]
    assert losses.shape == (64,)
    assert losses.min() < 1e-3  # some of the learning rates are good ones


def test_the_shapes_of_a_batch():
    """docs/reference/shapes.md"""
    names = {"jax": jax, "jaxgru": jaxgru, "batch": jnp.ones((2, 4, 3), "float32")}
    names["params"] = jaxgru.gru_init(jax.random.key(0), 3, 8)
    (block,) = recipes.blocks("reference/shapes.md")
    one, other = block.splitlines()
    exec(one, names)
    assert names["ys"].shape == (2, 4, 8)
    exec(other, names | {"batch": names["batch"].swapaxes(0, 1)})


def test_the_files_of_the_architecture_exist():
    page = (recipes.DOCS / "contribute" / "architecture.md").read_text()
    folders = (jaxgru.__path__[0], f"{jaxgru.__path__[0]}/backends")
    files = set(re.findall(r"`(\w+\.py)`", page))
    assert len(files) > 15
    assert {f for f in files if not any((Path(d) / f).exists() for d in folders)} == set()
