"""What the studies share, one subject a file."""
