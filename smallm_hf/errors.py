"""The one exception a user may cause."""


class UserError(ValueError):
    """A user's mistake: bad config, bad data, a wrong folder.

    The message is one line that names what is wrong, both values, and what to change. Scripts print it and exit
    with status 2; every other exception is our own fault and keeps its traceback.
    """
