"""What can go wrong because of the input, said in one line each: no other exception is meant for a user's eyes."""


class InputError(ValueError):
    """Bad input: one line that says what is wrong and what to do."""


class UsageError(InputError):
    """A name or an option that does not exist."""


class FitError(RuntimeError):
    """A fit that cannot go on: one line that names the step, the batch and the site."""
