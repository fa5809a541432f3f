"""The base class of errors that a user caused."""


class UserError(ValueError):
    """An error that a user caused and can fix. The message says what was got and what to do.

    Args:
        message: What is wrong. With `argument`, the text after its name.
        argument: Python's name of the wrong argument. A command shows its flag instead.
    """

    def __init__(self, message: str, argument: str | None = None):
        super().__init__(message if argument is None else f"`{argument}` {message}")
        self.argument, self.message = argument, message

    def with_flag(self) -> str:
        """The message as a command line shows it."""
        return str(self) if self.argument is None else f"--{self.argument.replace('_', '-')} {self.message}"
