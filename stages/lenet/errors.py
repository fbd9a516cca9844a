"""The error that every command line turns into one line."""


class InputError(Exception):
    """An input that a user gave cannot be used.

    The message is one line: what is wrong, where (file or parameter), what to do. The command line prints it after
    ``error: `` and exits with status 1.
    """
