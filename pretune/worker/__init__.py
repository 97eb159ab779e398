"""One stage run, inside the process that was given it."""
