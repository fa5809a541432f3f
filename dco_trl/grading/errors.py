"""The error of this package."""


class GraderError(RuntimeError):
    """A grader cannot be loaded, fails, or returns what a grader may not return."""
