"""Colours, markers and axes, so that a method looks the same in every picture."""

import io
import math
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike

from ..errors import UserError

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RIGHT, WRONG = PALETTE[2], "#8C8C8C"
# A schedule mixes methods, so it has a colour of its own.
SCHEDULE = "0.15"

_METHODS = {
    "cross-entropy": (PALETTE[0], "o"),
    "label smoothing": (PALETTE[5], "v"),
    "focal loss": ("#8C8C8C", "P"),
    "entropy bonus": (PALETTE[2], "X"),
    "GEM": (PALETTE[3], "d"),
    "DFT": (PALETTE[6], "*"),
    "weight averaging": ("#117733", "h"),
}
# A larger N is darker: 16 is orange, 256 vermilion, 4096 wine.
_DCO_COLOURS = LinearSegmentedColormap.from_list("dco", ["#F4C95D", "#E69F00", "#D55E00", "#7A1B50", "#2E0A2B"], N=257)
_DCO_MARKERS = {4: "v", 16: "s", 64: "P", 256: "^", 1024: "X", 4096: "D"}


def method_style(name: str) -> dict[str, Any]:
    """Return the colour and the marker of a method, for matplotlib's `plot`: the same in every picture.

    Examples:
        >>> method_style("DCO, N = 256")
        {'color': '#d55e00', 'marker': '^'}
    """
    dco = re.fullmatch(r"DCO, N = (\d+)", name)
    if dco and int(dco[1]) > 1:
        n = int(dco[1])
        return {"color": to_hex(_DCO_COLOURS(math.log2(n) / 16)), "marker": _DCO_MARKERS.get(n, "h")}
    if name not in _METHODS:
        raise UserError(f"name: got {name!r}, not a method; give 'DCO, N = 256' or one of {', '.join(_METHODS)}")
    colour, marker = _METHODS[name]
    return {"color": colour, "marker": marker}


def plain_axes(axes: Axes) -> None:
    """Keep the left and bottom lines, and draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def attempts_axis(axes: Axes, ticks: ArrayLike) -> None:
    """Make the horizontal axis a base-2 axis of k with these ticks, as whole numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(np.asarray(ticks, dtype=float).tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e5 else f"{value:.0e}"))


def percent_axis(axes: Axes) -> None:
    """Label the vertical axis in per cent, with as many digits as the ticks need: 0.5%, 20%."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}%"))


def coverage_axes(axes: Axes, largest: int, label: str) -> None:
    """Set up the axes for a share from 0 to 1 against k from 1 to `largest`."""
    base = 4 if largest >= 16 else 2
    attempts_axis(axes, [base**i for i in range(20) if base**i <= largest])
    percent_axis(axes)
    plain_axes(axes)
    axes.set_xlim(1, max(largest, 2))
    axes.set_ylim(0, 1)
    axes.set_xlabel("k, attempts per problem")
    axes.set_ylabel(label)


def facing_histogram(axes: Axes, shares: ArrayLike, right: ArrayLike) -> list[np.ndarray]:
    """Draw a histogram on [0, 1] with right answers upwards and wrong ones downwards.

    A bar's height is the square root of its count, so that small counts stay visible beside large ones.

    Returns:
        Counts of right and of wrong answers in each bin.
    """
    values, is_right = np.asarray(shares, dtype=float), np.asarray(right, dtype=bool)
    edges, width = np.linspace(0, 1, 21, retstep=True)
    counts: list[np.ndarray] = []
    for which, sign, colour in ((is_right, 1, RIGHT), (~is_right, -1, WRONG)):
        counts.append(np.histogram(values[which], edges)[0])
        axes.bar(edges[:-1], sign * counts[-1], width, align="edge", color=colour, edgecolor="white", linewidth=0.5)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_yscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: x * np.abs(x)))
    most = max(1.0, *(abs(bar.get_height()) for bar in axes.patches))  # type: ignore[attr-defined]
    ticks = [count for count in (1, 4, 10, 40, 100, 400, 1000, 4000, 10_000) if 0.022 * most <= count <= most]
    axes.yaxis.set_major_locator(FixedLocator([*(-count for count in ticks[::-1]), 0, *ticks]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
    axes.set_xlim(0, 1)
    plain_axes(axes)
    return counts


def right_wrong_handles() -> list[Patch]:
    """Return the entries of a legend for `facing_histogram`."""
    return [Patch(facecolor=RIGHT, label="right (upwards)"), Patch(facecolor=WRONG, label="wrong (downwards)")]


def plain_text(text: str) -> str:
    """Escape dollars and a leading underscore, to which matplotlib gives a meaning."""
    text = text.replace("$", r"\$")
    return "\u200b" + text if text.startswith("_") else text


def title_strip(axes: Axes, low: float, high: float, *lines: str) -> None:
    """Attach lines of text to a strip of the horizontal axis; the SVG of `svg_text` shows them under the pointer."""
    # Nearly transparent: a pointer does not find a fully transparent strip.
    axes.axvspan(low, high, facecolor="white", alpha=0.01, linewidth=0, zorder=9, gid="title:" + "\n".join(lines))


def svg_text(figure: Figure) -> str:
    """Return a figure as an SVG element that keeps letters as text."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file, format="svg", facecolor="white")
    svg = file.getvalue()
    # The attribute may use either quote, and its text may have line breaks.
    marked = r"""<g id=(["'])title:(.*?)\1>"""
    return re.sub(marked, r"<g><title>\2</title>", svg[svg.index("<svg") :], flags=re.DOTALL)
