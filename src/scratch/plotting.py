"""The look of every figure in the book, set in one place."""

from typing import Any

import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor

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


def draw_points(axes: Axes, x: Tensor, labels: Tensor) -> None:
    """Draw points x (n, 2): hollow circles for 0, filled squares for 1."""
    for label, marker, color, face in (
        (0, "o", VERMILLION, "white"),
        (1, "s", BLUE, BLUE),
    ):
        axes.scatter(
            *x[labels == label].T,
            marker=marker,
            s=28,
            edgecolors=color,
            facecolors=face,
            linewidths=1.4,
            label=f"label {label}",
        )


def draw_line(
    axes: Axes, weight: Tensor, bias: Tensor | float, **style: Any
) -> None:
    """Draw the points where weight . x + bias = 0, for weight (2,).

    Args:
        style: passed on to matplotlib's axline.
    """
    normal = weight / weight.norm()
    foot = -bias / weight.norm() * normal  # the line's point nearest 0
    along = torch.stack([-normal[1], normal[0]])
    axes.axline(foot.tolist(), (foot + along).tolist(), **style)


def draw_digit(
    axes: Axes, pixels: Tensor, title: str = "", **style: Any
) -> AxesImage:
    """Show 64 pixels as an 8 by 8 picture without axes.

    Args:
        style: passed on to matplotlib's imshow.
    """
    axes.set_title(title)
    axes.set_axis_off()
    return axes.imshow(pixels.view(8, 8), **({"cmap": "gray_r"} | style))
