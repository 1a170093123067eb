"""A comparison of runs with published numbers, as a page and as a table."""
