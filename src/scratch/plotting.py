"""The look of every figure in the book, set in one place."""

import random
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
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
_LINE_HEIGHT = 0.17  # of text in a box, inches


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


def draw_graph(
    nodes: Mapping[Hashable, Sequence[str]],
    edges: Sequence[tuple[Hashable, Hashable, str]],
    *,
    width: float = FIGURE_SIZE[0],
) -> Figure:
    """Draw a graph without loops from left to right, in a new figure.

    A node stands one column before the first node that it leads to. Within
    a column the order is the one with the fewest crossings that was found.

    Args:
        nodes: the lines of text in each node's box, at most three: the
            first in black, the second in blue, the third in vermillion.
            Boxes that no arrow enters are shaded.
        edges: (from, to, text on the arrow), as often as it is drawn.
        width: of the figure, in inches; the height follows.
    """
    size = {node: _box_size(lines) for node, lines in nodes.items()}
    column, routes = _routes(nodes, edges)
    columns = _untangled(column, routes)
    x = _column_centers(columns, size, width)
    y = _heights(columns, routes, size)
    height = max(y[p] + size.get(p, (0, 0))[1] / 2 for p in y) + 0.1
    figure = plt.figure(figsize=(width, height), layout="none")
    axes = figure.add_axes((0, 0, 1, 1))  # one unit is one inch
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for node, lines in nodes.items():
        shaded = all(end != node for _, end, _ in edges)
        _draw_box(axes, (x[node], y[node]), size[node], lines, shaded)
    for i, (route, (start, end, text)) in enumerate(
        zip(routes, edges, strict=True)
    ):
        # Arrows into one box arrive one below the other, as they come.
        rivals = [j for j, edge in enumerate(edges) if edge[1] == end]
        rivals.sort(key=lambda j: (y[routes[j][-2]], j))
        shift = 0.13 * (rivals.index(i) - (len(rivals) - 1) / 2)
        first = (x[start] + size[start][0] / 2, y[start])
        last = (x[end] - size[end][0] / 2, y[end] + shift)
        bends = [(x[place], y[place]) for place in route[1:-1]]
        _draw_arrow(axes, [first, *bends, last], text)
    return figure


def _box_size(lines: Sequence[str]) -> tuple[float, float]:
    """Width and height of a box around lines of text, in inches."""
    widths = [
        TextPath((0, 0), line, size=9).get_extents().width
        for line in lines
        if line.strip()
    ]
    return max(widths, default=0) / 72 + 0.2, _LINE_HEIGHT * len(lines) + 0.12


def _routes(
    nodes: Mapping[Hashable, Sequence[str]],
    edges: Sequence[tuple[Hashable, Hashable, str]],
) -> tuple[dict[Hashable, int], list[list[Hashable]]]:
    """Return each place's column, from the right, and each edge's places.

    A place is a node, or a point where an edge passes a column on its way:
    ("bend", number of the edge, column).
    """
    column = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for start, end, _ in edges:
            column[start] = max(column[start], column[end] + 1)
    routes = []
    for i, (start, end, _) in enumerate(edges):
        passed = range(column[start] - 1, column[end], -1)
        bends = {("bend", i, c): c for c in passed}
        column |= bends
        routes.append([start, *bends, end])
    return column, routes


def _untangled(
    column: Mapping[Hashable, int], routes: list[list[Hashable]]
) -> list[list[Hashable]]:
    """Order each column from bottom to top; the leftmost comes first.

    From random starts, each place goes again and again to the mean of the
    places that it is linked to; the order with fewest crossings is kept.

    Source: Sugiyama et al. (1981), the barycentric method.
    """
    links = list({link: 0 for route in routes for link in pairwise(route)})
    n_columns = max(column.values()) + 1
    members = [
        [p for p in column if column[p] == c]
        for c in range(n_columns - 1, -1, -1)
    ]
    generator = random.Random(0)
    best, least = members, float("inf")
    for _ in range(60):
        row = {place: generator.random() for place in column}
        for sweep in range(8):
            side = sweep % 2  # look at what comes after, or before
            for places in members[:: 2 * side - 1]:
                pull = {
                    p: [row[ab[1 - side]] for ab in links if ab[side] == p]
                    for p in places
                }
                places = sorted(
                    places, key=lambda p: fmean(pull[p] or [row[p]])
                )
                for i, p in enumerate(places):
                    row[p] = i - (len(places) - 1) / 2
        crossings = sum(
            column[a] == column[c]
            and (row[a] - row[c]) * (row[b] - row[d]) < 0
            for (a, b), (c, d) in combinations(links, 2)
        )
        length = sum(abs(row[a] - row[b]) for a, b in links)
        if (cost := crossings + length / 1000) < least:
            best = [sorted(places, key=row.__getitem__) for places in members]
            least = cost
    return best


def _column_centers(
    columns: list[list[Hashable]],
    size: Mapping[Hashable, tuple[float, float]],
    width: float,
) -> dict[Hashable, float]:
    """Spread the columns so that the gaps between their boxes are equal."""
    widths = [max(size.get(p, (0, 0))[0] for p in ps) for ps in columns]
    gap = (width - 0.2 - sum(widths)) / max(len(columns) - 1, 1)
    x, left = {}, 0.1
    for places, own in zip(columns, widths, strict=True):
        x |= dict.fromkeys(places, left + own / 2)
        left += own + gap
    return x


def _heights(
    columns: list[list[Hashable]],
    routes: list[list[Hashable]],
    size: Mapping[Hashable, tuple[float, float]],
) -> dict[Hashable, float]:
    """Pull each place toward its neighbors, without letting boxes touch."""
    half = {p: size.get(p, (0, 0.1))[1] / 2 for ps in columns for p in ps}
    neighbors = {p: [] for p in half}
    for route in routes:
        for a, b in pairwise(route):
            neighbors[a].append(b)
            neighbors[b].append(a)
    y = {p: float(i) for places in columns for i, p in enumerate(places)}
    for _ in range(60):
        for places in columns:
            wanted = [fmean(y[q] for q in neighbors[p] or [p]) for p in places]
            placed = []
            for i, p in enumerate(places):
                below = places[i - 1]
                lowest = placed[-1] + half[below] + half[p] + 0.14 if i else 0
                placed.append(max(wanted[i], lowest) if i else wanted[i])
            shift = fmean(wanted) - fmean(placed)
            y |= {p: h + shift for p, h in zip(places, placed, strict=True)}
    bottom = min(y[p] - half[p] for p in y) - 0.1
    return {p: h - bottom for p, h in y.items()}


def _draw_box(
    axes: Axes,
    center: tuple[float, float],
    size: tuple[float, float],
    lines: Sequence[str],
    shaded: bool,
) -> None:
    (x, y), (width, height) = center, size
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.07",
        facecolor="#F0F0F0" if shaded else "white",
        edgecolor=GRAY,
        linewidth=1,
        zorder=2,
    )
    axes.add_patch(box)
    style = {"fontsize": 9, "ha": "center", "va": "center_baseline"}
    for i, line in enumerate(lines):
        up = ((len(lines) - 1) / 2 - i) * _LINE_HEIGHT
        color = ("black", BLUE, VERMILLION)[i]
        axes.text(x, y + up, line, color=color, zorder=3, **style)


def _draw_arrow(
    axes: Axes, points: Sequence[tuple[float, float]], text: str
) -> None:
    """Draw a smooth arrow through points, level at both ends."""
    slopes = [
        (after[1] - before[1]) / (after[0] - before[0])
        for before, after in zip(points, points[2:], strict=False)
    ]
    vertices, codes = [points[0]], [Path.MOVETO]
    for (start, end), (first, last) in zip(
        pairwise(points), pairwise([0, *slopes, 0]), strict=True
    ):
        reach = (end[0] - start[0]) * 0.45
        vertices += [
            (start[0] + reach, start[1] + reach * first),
            (end[0] - reach, end[1] - reach * last),
            end,
        ]
        codes += 3 * [Path.CURVE4]
    arrow = FancyArrowPatch(
        path=Path(vertices, codes),
        arrowstyle="-|>",
        mutation_scale=9,
        color=GRAY,
        linewidth=1.2,
        zorder=1,
    )
    axes.add_patch(arrow)
    if text:
        (x0, y0), (x1, y1) = points[:2]
        patch = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        style = {"fontsize": 8, "ha": "center", "va": "center"}
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        axes.text(x, y, text, bbox=patch, zorder=2, **style)
