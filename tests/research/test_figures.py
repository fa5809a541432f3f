"""The pictures of docs/results come from the committed data, and can be read at the width of a page."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from research import figures
from research.common import pictures

RESULTS = Path(__file__).parents[2] / "docs/results"
OF_A_BENCHMARK = {"replay.png"}


@pytest.fixture(scope="module")
def drawn():
    found: dict[str, Figure] = {}

    def keep(parts, path):
        found.update({f"{path.stem}{suffix}.png": figure for suffix, figure in parts.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", keep)
        assert figures.main(["--output_dir", "docs/results"]) == 0
    for figure in found.values():
        figure.draw_without_rendering()  # ticks have no text before
    return found


@pytest.mark.slow
def test_every_picture_is_drawn_from_committed_data(drawn):
    assert set(drawn) == {path.name for path in RESULTS.glob("*.png")} - OF_A_BENCHMARK
    for name, figure in drawn.items():
        height, width, _ = imread(RESULTS / name).shape
        assert (width, height) == tuple(round(150 * inches) for inches in figure.get_size_inches()), f"{name} is old"


@pytest.mark.slow
def test_letters_are_readable_at_the_width_of_a_page(drawn):
    for name, figure in drawn.items():
        shown_at = min(1.0, pictures.WIDTH / figure.get_size_inches()[0])
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert min(sizes) * shown_at >= 9, name


def test_pictures_are_kept_beside_each_other(tmp_path):
    pictures.save({"": Figure((2, 1)), "-lead": Figure((1, 1))}, tmp_path / "new" / "a.png")
    assert imread(tmp_path / "new/a.png").shape[:2] == (150, 300)
    assert imread(tmp_path / "new/a-lead.png").shape[:2] == (150, 150)
