"""Runnable studies, one folder a task: `python -m experiments.adding_task`."""
