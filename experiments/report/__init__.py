"""Runs beside the published numbers, as a page and as a table."""
