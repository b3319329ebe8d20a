"""How a user's mistake is told: what was asked, what was found, what to do.  One paragraph, no
traceback."""


class UserError(Exception):
    """A mistake the user can mend.  code: 2 for wrong use, 1 for a problem found in files or
    data."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def wrong_use(message: str) -> UserError:
    return UserError(message, code=2)
