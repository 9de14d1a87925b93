"""The one exception that means "the input is wrong", as opposed to "the program is wrong", and what its text holds."""


class InputError(ValueError):
    """Bad input: params, files or arguments that a person can mend.

    The message says what was expected, what came, where, and what to do. `fvlm.cli` prints it as it is, without a
    traceback, and ends with exit code 2. Several findings may be reported at once, one per line.
    """


def can_stand_in_a_line(text: str) -> bool:
    """Whether `text`, such as a path, has no control letters, and nothing that UTF-8 cannot write."""
    return not any(ord(letter) < 32 or letter == "\x7f" or "\ud800" <= letter <= "\udfff" for letter in text)
