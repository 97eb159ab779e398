"""Errors of the engine that a user can mend, and exit codes."""

from pretune.search_spaces.errors import UsageError


class ModelError(UsageError):
    """The model of a study cannot be used; the message says what to do."""


class SearchStorageError(UsageError):
    """The searches cannot be stored: says where and what to do, without a password."""


class LoggerError(UsageError):
    """A logger that was asked for cannot be used; the message says what to install."""


class ClusterError(UsageError):
    """The Ray cluster cannot be used as asked: says which node or address, and what to do."""


EXIT_USAGE, EXIT_FAILED_STAGES, EXIT_STOPPED = 2, 3, 130  # what the commands end with, beside 0
