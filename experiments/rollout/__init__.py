"""Reinforcement learning with memory. Episodes restart inside `jit`, by `reset`."""
