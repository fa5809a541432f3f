"""The error of this package."""

from ..errors import UserError


class GraderError(UserError):
    """A grader cannot be loaded, fails, or returns what a grader may not return."""
