"""A user's grader whose module takes no time to import in a worker."""


def last_word(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    """The last word is the answer."""
    return [float(text.split(" ")[-1] == reference) for text, reference in zip(completions, answer, strict=True)]
