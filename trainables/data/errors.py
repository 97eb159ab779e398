"""Errors of data, and names of files as printable text. Three exceptions:

DataError          the data set cannot be used: what, where, and what to do; shown to the user as it is
RequirementsError  a stage requires of its data set what it does not have; trying again would end the same
BadFileError       one file cannot be used; collected by whoever reads many, never shown alone
"""

from __future__ import annotations

from collections.abc import Sequence

from pretune.search_spaces.errors import UsageError

SHOWN = 10  # problems listed in a message; the rest are counted


def printable(text: str) -> str:
    r"""A name of bytes that are not UTF-8 (`caf\xe9.png`) with these written out; all other text as it is.

    Python holds such bytes as lone surrogates (PEP 383), which open the file but which no encoding takes: a terminal,
    a log, a page, a Parquet column. What is opened keeps its name; what is shown goes through here.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Unopened(str):
    """A problem of a file that cannot be opened: its disk or network may be at fault, and another try may help."""

    __slots__ = ()


class DataError(UsageError):
    """The data set cannot be used. `problems` holds every single one; the message shows the first ten.

    Both arguments are in `args`, so the error survives pickling between processes.
    """

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        self.summary = printable(summary)
        self.problems = tuple(type(problem)(printable(problem)) for problem in problems)
        super().__init__(self.summary, self.problems)

    @property
    def stays(self) -> bool:
        """Whether trying again would end the same: what files hold does not change by itself."""
        return bool(self.problems) and not any(isinstance(problem, Unopened) for problem in self.problems)

    def __str__(self) -> str:
        lines = [self.summary, *(f"  {problem}" for problem in self.problems[:SHOWN])]
        if len(self.problems) > SHOWN:
            lines.append(f"  ... and {len(self.problems) - SHOWN} more")
        return "\n".join(lines)


class RequirementsError(DataError):
    """A stage asks of its data set what it does not have: see `pretune.trainables.data.checks.requirements`."""

    @property
    def stays(self) -> bool:
        return True


class BadFileError(Exception):
    """One file cannot be used; the message says why and what to do, without the file's name."""

    def of(self, name: str) -> str:
        """The problem of the file with this name."""
        return f"{name}: {self}"


class UnopenedFileError(BadFileError):
    """One file cannot be opened."""

    def of(self, name: str) -> str:
        """The problem of the file with this name, of a kind that may be gone at the next try."""
        return Unopened(super().of(name))


def laid_over_black(count: int) -> str:
    """Sentence on images with transparent parts, where no background was given."""
    many = "1 image has" if count == 1 else f"{count} images have"
    return f"{many} transparent parts, which are drawn over black (`background:` of a data set sets another colour)"
