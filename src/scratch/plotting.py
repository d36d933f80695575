"""The look of every figure in the book, set in one place."""

import matplotlib.pyplot as plt
from cycler import cycler

BLUE, VERMILLION, GREEN, PURPLE, GRAY = COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#767676",
)
SOLID, DASHED, DASHDOT, DOTTED = LINES = ("-", "--", "-.", ":")
FIGURE_SIZE = (6.4, 3.6)  # inches


def use_book_style() -> None:
    """Draw all following figures in the style of the book, as SVG.

    Colors come paired with line styles, so that a figure still reads in
    gray. In a notebook the figures are vector images; elsewhere only
    matplotlib's settings change.
    """
    plt.rcParams.update(
        {
            "figure.figsize": FIGURE_SIZE,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "scratch",  # the same figure, the same bytes
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "lines.linewidth": 1.8,
            "axes.prop_cycle": cycler(color=COLORS[:4])
            + cycler(linestyle=LINES),
            "image.cmap": "viridis",
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # not in a notebook
        return
    set_matplotlib_formats("svg", metadata={"Date": None})
