"""Dispatch: chooses the next stage and its node, and records how it ended; no Ray in here."""
