"""Errors that the command line shows as one sentence, in a module that imports nothing heavy."""


class ModelError(Exception):
    """The model of a study cannot be used; the message says what to do."""


class SearchStorageError(Exception):
    """The searches cannot be stored: says where and what to do, without a password."""


class LoggerError(Exception):
    """A logger that was asked for cannot be used; the message says what to install."""


class ClusterError(Exception):
    """The Ray cluster cannot be used as asked: says which machine or address, and what to do."""


EXIT_USAGE, EXIT_FAILED_STAGES, EXIT_STOPPED = 2, 3, 130  # what the commands end with, beside 0
