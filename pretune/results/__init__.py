"""Files that a study leaves for `analysis` and for people."""
