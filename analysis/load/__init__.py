"""Stored results, read."""
