"""Code that the studies share, with one subject per file."""
