"""What the look of the book promises: formulas, the map, docstrings."""

import pytest
import yaml
from book_look import display_tex, docstring_to_rst, map_html, tidy_body
from layout import CURRICULUM, ROOT

PARTS = yaml.safe_load((ROOT / "book/chapters.yml").read_text("utf8"))


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        ("a = b", "a = b"),
        (r"a &= b \\ c &= d", r"\begin{aligned}a &= b \\ c &= d\end{aligned}"),
        ("a\n\nb", r"\begin{aligned}a \\ b\end{aligned}"),
        (r"\begin{aligned}a \\ b\end{aligned}",) * 2,
        (r"f = \begin{cases}a \\ b\end{cases}",) * 2,
        (r"\left\{a\right\} {b \\ c}",) * 2,
    ],
)
def test_lines_of_a_formula_are_aligned_once(tex, expected):
    assert display_tex(tex) == expected


@pytest.mark.parametrize("name", ["equation", "align", "gather"])
def test_an_environment_leaves_its_number_to_sphinx(name):
    tex = rf"\begin{{{name}}}x\end{{{name}}}"
    starred = rf"\begin{{{name}*}}x\end{{{name}*}}"
    assert display_tex(tex, whole_environment=True) == starred
    assert display_tex(starred, whole_environment=True) == starred


def test_the_map_names_each_chapter_of_the_curriculum_in_order():
    docs = [chapter["doc"] for part in PARTS for chapter in part["chapters"]]
    stems = [modules[0] for modules in CURRICULUM]
    names = [doc[: doc.index("/") + 1] + doc.split("_", 1)[1] for doc in docs]
    assert names == stems


def test_a_chapter_is_a_link_only_when_it_exists():
    first, second = PARTS[0]["chapters"][:2]
    drawn = map_html(PARTS, {f"book/{first['doc']}": 50}, lambda doc: doc)
    assert f'<a href="book/{first["doc"]}">{first["title"]}</a>' in drawn
    assert f'<a href="book/{second["doc"]}"' not in drawn
    assert f'{second["title"]}<span class="visually-hidden">' in drawn
    assert drawn.count('class="ready"') == 1
    assert "50&nbsp;min" in drawn


def test_the_total_waits_until_each_chapter_says_its_minutes():
    known = {"book/nn/01_neuron": 50, "book/nn/02_activations": 40}
    assert "about 1.5 hours" in map_html(PARTS, known, str)
    known["book/nn/02_activations"] = None
    assert "hours" not in map_html(PARTS, known, str)


def test_a_docstring_of_the_house_style_becomes_fields():
    docstring = """Weigh |x| and x_ and *args.

    z = w_1 x_1 * 2

Shapes:
    x (B, T), bias has none
    result (B,)

Args:
    slope: where x is negative;
        at least 0.

Attributes:
    grad: the slopes.

Raises: ValueError if `x` is
    too short.
Source: Author (1958).

>>> f(1)
2"""
    made = docstring_to_rst(docstring.splitlines())
    assert [line for line in made if line] == [
        r"Weigh \|x\| and x\_ and \*args.",
        ".. code-block:: text",
        "    z = w_1 x_1 * 2",
        ":Shapes:",
        "    | x ``(B, T)``, bias has none",
        "    | result ``(B,)``",
        ":param slope: where x is negative; at least 0.",
        ":ivar grad: the slopes.",
        ":Raises: ValueError if ``x`` is too short.",
        ":Source: Author (1958).",
        ">>> f(1)",
        "2",
    ]


def test_a_signature_over_several_lines_is_no_list():
    signature = '<dt class="sig sig-object py"><dl>\n<dd>x</dd>\n</dl></dt>'
    made = tidy_body(f"{signature}<dl><dd>a list</dd></dl>")
    assert "<dl><dd>a list</dd></dl>" in made
    assert made.count("<dd>") == 1
    assert made.count("<span") == made.count("</span>") == 2
