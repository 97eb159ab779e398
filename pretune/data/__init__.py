"""Data of a study, before anything trains: preparation, requirements, leaks, checks."""
