"""Pictures are 8.8 inches wide at most: at the width of a page on GitHub no letter then is smaller than 9 points."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

WIDTH = 8.8


def save(pictures: Mapping[str, Figure], path: Path) -> None:
    """Write each picture beside `path`, whose name gets the picture's suffix: schedule.png, schedule-lead.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, figure in pictures.items():
        figure.savefig(path.with_stem(path.stem + suffix), dpi=150)
