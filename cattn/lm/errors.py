"""The one error that a person can mend: something given to the language model is not usable."""


class InputError(ValueError):
    """A text, a checkpoint or a setting that cannot be used; the message is one clear line.

    The command line prints the message and exits with code 2.

    Examples
    --------
    >>> from cattn.lm import WordTokenizer
    >>> WordTokenizer.from_tokens([])
    Traceback (most recent call last):
        ...
    cattn.lm.errors.InputError: the text is empty
    """
