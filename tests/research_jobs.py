"""A run that takes no time, in a file of its own: a process that runs it imports nothing else."""


def square(number: int) -> dict:
    """The square; 2 has none."""
    if number == 2:
        raise ValueError("two")
    return {"squared": number**2}
