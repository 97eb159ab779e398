"""The command line: verbs that call importable functions."""
