"""What the stages share: the data formats, the network, its training, its evaluation and its pictures."""


class InputError(Exception):
    """An input that a user gave cannot be used.

    The message is one line: what is wrong, where (file or parameter), what to do. The command line prints it behind
    ``error: `` and exits with status 1.
    """
