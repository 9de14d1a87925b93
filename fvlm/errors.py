"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""


class InputError(ValueError):
    """Bad input: params, files or arguments that a person can mend.

    The message says what was expected, what came, where, and what to do. `fvlm.cli` prints it as it is, without a
    traceback, and ends with exit code 2. Several findings may be reported at once, one per line.
    """
