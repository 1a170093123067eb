import jax
import pytest


@pytest.fixture(scope="module")
def optax_promotes():
    """Optax's Adam raises a float to an integer power, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
