"""Draw the populations of the arguments repeatedly, and print "drawn" at the end.

tests/test_initializers.py runs this in its own process, since a deadlock ends only with its
process.
"""

import sys

import jax

import jaxgru

SIZE = 40
orthogonal = jax.nn.initializers.orthogonal()


def stack(key):
    return jaxgru.stack_init(key, SIZE, SIZE, num_layers=2)


def three_cells(key):
    one, two, three = jax.random.split(key, 3)
    return (
        jaxgru.gru_init(one, SIZE, SIZE),
        jaxgru.lstm_init(two, SIZE, SIZE // 2, init="keras"),
        jaxgru.elman_init(three, SIZE, SIZE),
    )


def beside_another(key):
    """Draw with the decomposition of JAX, as a layer of another library may do."""
    one, two = jax.random.split(key)
    return jaxgru.gru_init(one, SIZE, SIZE), orthogonal(two, (SIZE, SIZE))


DRAWS = {"stack": stack, "three_cells": three_cells, "beside_another": beside_another}


def main():
    keys = jax.random.split(jax.random.key(0), 16)
    for name in sys.argv[2:]:
        population = jax.jit(jax.vmap(DRAWS[name]))
        for _ in range(int(sys.argv[1])):
            jax.block_until_ready(population(keys))
    print("drawn")


if __name__ == "__main__":
    main()
