"""An error that the studio's server answers with, and with which HTTP status."""

from __future__ import annotations

from backglass.errors import UserError


class Problem(UserError):
    """400 wrong use, 403 forbidden, 404 not there, 413 too large, 422 the recording is damaged."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def damaged(what: object, error: object) -> Problem:
    return Problem(422, f"{what} is damaged: {error}. Record the step again.")
