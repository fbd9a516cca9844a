"""The error that every command line turns into one line, and how such a line is made."""


class InputError(Exception):
    """An input that a user gave cannot be used.

    The message is one line: what is wrong, where (file or parameter), what to do. The command line prints it after
    ``error: `` and exits with status 1.
    """


def printable(text: str) -> str:
    r"""The text on one line that is safe to print, with unprintable characters escaped, for example as ``\x1b``.

    Texts from servers and files end up in messages, and a terminal obeys escape sequences.
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine or an accelerator ran out of memory: PyTorch reports most such cases by their text alone."""
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )
