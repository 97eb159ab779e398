"""Checks of data: requirements of stages, excluded files, duplicates, contact sheets."""
