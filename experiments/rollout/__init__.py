"""Reinforcement learning with memory: episodes that begin anew inside `jit`, by `reset`."""
