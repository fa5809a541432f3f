"""The base class of the errors that a user caused."""


class UserError(ValueError):
    """What a user caused and can mend: the message says what was got and what to do. Commands print it as one line.

    Args:
        message: What is wrong; with `argument`, what follows its name.
        argument: Python's name of the argument that is wrong. A command shows its flag in place of it.
    """

    def __init__(self, message: str, argument: str | None = None):
        super().__init__(message if argument is None else f"`{argument}` {message}")
        self.argument, self.message = argument, message

    def with_flag(self) -> str:
        """The message as a command line shows it."""
        return str(self) if self.argument is None else f"--{self.argument.replace('_', '-')} {self.message}"
