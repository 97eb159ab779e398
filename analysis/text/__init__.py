"""Answers and tables as text."""
