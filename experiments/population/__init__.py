"""Thousands of small GRUs trained at once: a map of learning rate and update bias."""
