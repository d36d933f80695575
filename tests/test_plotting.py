"""A drawn graph shows each node once and each edge, and nothing overlaps."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from scratch.plotting import draw_graph


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(nodes, edges, **options):
    """Return {node: its box}, the arrows, and the texts of a figure."""
    figure = draw_graph(nodes, edges, **options)
    (axes,) = figure.axes
    boxes = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    arrows = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    texts = [text.get_text() for text in axes.texts]
    return dict(zip(nodes, boxes, strict=True)), arrows, texts


def center(box):
    return (
        box.get_x() + box.get_width() / 2,
        box.get_y() + box.get_height() / 2,
    )


def start_and_tip(arrow):
    points = arrow.get_path().vertices
    return points[0], points[points[:, 0].argmax()]


def plain(*names):
    return {name: [name] for name in names}


NETWORK = (
    plain("x", "y", "h1", "h2", "h3", "out", "loss"),
    [
        *(("x", h, "") for h in ("h1", "h2", "h3")),
        *((h, "out", "") for h in ("h3", "h1", "h2")),
        ("y", "loss", ""),
        ("out", "loss", ""),
        ("x", "loss", "+1"),
    ],
)


def test_shows_every_line_and_every_edge():
    nodes = {"a": ["w", "2", "grad 8"], "b": ["loss", "3"]}
    boxes, arrows, texts = drawn(nodes, [("a", "b", "+4"), ("a", "b", "")])
    assert texts.count("+4") == 1
    assert {"w", "2", "grad 8", "loss", "3"} <= set(texts)
    assert len(boxes) == 2 and len(arrows) == 2
    (start, tip), (other_start, other_tip) = map(start_and_tip, arrows)
    assert (start == other_start).all()
    for x in (tip[0], other_tip[0]):
        assert x == pytest.approx(boxes["b"].get_x(), abs=0.03)
    assert abs(tip[1] - other_tip[1]) > 0.1


def test_arrows_lead_to_the_right():
    nodes, edges = NETWORK
    boxes, _, _ = drawn(nodes, edges)
    for start, end, _ in edges:
        assert center(boxes[start])[0] < center(boxes[end])[0]
    assert center(boxes["y"])[0] == center(boxes["out"])[0]


def test_boxes_lie_inside_and_apart():
    boxes, _, _ = drawn(*NETWORK)
    width, height = plt.gcf().get_size_inches()
    for box in boxes.values():
        assert 0 <= box.get_x() <= width - box.get_width()
        assert 0 <= box.get_y() <= height - box.get_height()
    for one, other in combinations(boxes.values(), 2):
        (x0, y0), (x1, y1) = center(one), center(other)
        assert (
            abs(x0 - x1) >= (one.get_width() + other.get_width()) / 2
            or abs(y0 - y1) >= (one.get_height() + other.get_height()) / 2
        )


def test_arrows_do_not_cross_where_they_need_not():
    # a zigzag between two columns, its nodes and edges in a mixed order
    lefts, rights = ("d", "a", "e", "b", "c"), ("q", "t", "p", "s", "r")
    pairs = list(zip("abcde", "pqrst", strict=True))
    pairs += list(zip("abcd", "qrst", strict=True))
    edges = [(start, end, "") for start, end in pairs[::-2] + pairs[-2::-2]]
    boxes, _, _ = drawn(plain(*lefts, *rights), edges)
    y = {name: center(box)[1] for name, box in boxes.items()}
    assert len(edges) == 9
    for (a, b, _), (c, d, _) in combinations(edges, 2):
        assert (y[a] - y[c]) * (y[b] - y[d]) >= 0


def test_a_long_arrow_goes_around_the_boxes_between():
    between = ("b", "c", "d")
    nodes = {name: [name, "value", "grad"] for name in ("a", *between, "e")}
    chain = [("a", "b", ""), ("b", "c", ""), ("c", "d", ""), ("d", "e", "")]
    boxes, arrows, _ = drawn(nodes, [*chain, ("a", "e", "")])
    points = arrows[-1].get_path().to_polygons(closed_only=False)[0]
    for name in between:
        x, y = center(boxes[name])
        gap = abs(np.interp(x, *points.T) - y) - boxes[name].get_height() / 2
        assert gap > 0


def test_is_the_same_each_time_and_takes_a_width():
    first, _, _ = drawn(*NETWORK, width=5.0)
    assert plt.gcf().get_size_inches()[0] == 5
    second, _, _ = drawn(*NETWORK, width=5.0)
    for node in first:
        assert center(first[node]) == center(second[node])


def test_only_boxes_that_no_arrow_enters_are_shaded():
    boxes, _, _ = drawn(*NETWORK)
    white = (1.0, 1.0, 1.0, 1.0)
    shaded = {n for n, box in boxes.items() if box.get_facecolor() != white}
    assert shaded == {"x", "y"}


def test_a_single_node_needs_no_edges():
    boxes, arrows, texts = drawn({"only": ["only", ""]}, [])
    assert len(boxes) == 1 and arrows == [] and "only" in texts
