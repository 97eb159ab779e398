"""Names of files as text that can be printed and stored: the one place where that is done."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""A name of bytes that are not UTF-8 (`caf\xe9.png`) with these written out; all other text as it is.

    Python holds such bytes as lone surrogates (PEP 383), which open the file but which no encoding takes: a terminal,
    a log, a page, a Parquet column. What is opened keeps its name; what is shown goes through here.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
