"""Data sets as memory-mapped arrays, decoded once."""
