"""The base class of all errors that a user can mend.

It stands on the lowest floor, which every package may import, and itself imports nothing.
"""


class UsageError(Exception):
    """The study, its data, its store or its nodes cannot be used as asked.

    The message says what is wrong, why it cannot be used, and what to do. The command line prints it as one sentence
    and ends with exit code 2.
    """
