"""Each check of the built site accepts a good page and rejects a bad one."""

from functools import partial
from pathlib import Path

import pytest
import site_checks as checks

GOOD = """<html><head>
<meta http-equiv="refresh" content="0; url=two.html">
<link rel="stylesheet" href="../_static/style.css?v=1">
<link rel="canonical" href="https://example.org/book/one.html">
</head><body><img src="../_static/logo.svg" alt="">
<article id="start">
<p id="here">See <a href="two.html#there">there</a>, <a href="#here">here</a>,
<a href="https://example.org/gone">elsewhere</a>, and <code>nan</code>.</p>
<p>As <a href="two.html#entry">[1]</a> found, banana is no number.</p>
<div class="cell docutils container">
<div class="cell_output docutils container">
<div class="output text_plain"><pre>0.5</pre></div>
<figure id="fig"><img alt="A line that rises." src="line.svg">
<figcaption><p><span class="caption-text">It rises.</span></p></figcaption>
</figure></div></div>
<div class="cell tag_nan-explained docutils container">
<div class="cell_output docutils container">
<div class="output text_plain"><pre>tensor([nan])</pre></div></div></div>
</article></body></html>
"""
TWO = """<html><body><article><h1 id="there">Two</h1>
<div class="citation" id="entry" role="doc-biblioentry">One (2020).</div>
</article></body></html>
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "style.css").write_text("")
    (tmp_path / "_static" / "logo.svg").write_text("<svg/>")
    (tmp_path / "book" / "line.svg").write_text("<svg/>")
    (tmp_path / "book" / "left.html").write_text("<p id='over'>")
    (tmp_path / "book" / "two.html").write_text(TWO)
    return tmp_path


def all_checks(site):
    return {
        "links": partial(checks.check_links, site=site),
        "own_host": checks.check_own_host,
        "ids": checks.check_ids,
        "citations": partial(checks.check_citations, site=site, n_cited=1),
        "images": checks.check_images,
        "outputs": checks.check_outputs,
        "prose_nan": checks.check_prose_nan,
        "weight": partial(checks.check_weight, site=site),
    }


def found(folder, html):
    (folder / "book" / "one.html").write_text(html, "utf8")
    site = checks.Site(folder, ["book/one", "book/two"])
    page = site.pages["book/one.html"]
    answers = {
        name: [str(problem) for problem in check(page)]
        for name, check in all_checks(site).items()
    }
    return {name: answer for name, answer in answers.items() if answer}


def test_a_good_page_passes_every_check(folder):
    assert found(folder, GOOD) == {}


OUTPUT = '<div class="output text_plain"><pre>0.5</pre></div>'
# (the check that must see it, what to replace, by what, part of the message)
BAD = [
    ("links", "two.html#there", "three.html", "three.html"),
    ("links", "two.html#there", "two.html#nowhere", "two.html#nowhere"),
    ("links", 'href="#here"', 'href="#gone"', "#gone"),
    ("links", "style.css?v=1", "gone.css?v=1", "gone.css"),
    ("links", "line.svg", "gone.svg", "gone.svg"),
    ("links", "two.html#there", "left.html#over", "left.html"),
    ("links", "two.html#there", "/book/two.html", "/book/two.html"),
    ("links", "two.html#there", "../book/", "../book/"),
    ("links", "two.html#there", "../../passwd", "../../passwd"),
    ("links", "url=two.html", "url=gone.html", "gone.html"),
    ("own_host", "../_static/style.css?v=1", "https://a.b/c.css", "a.b"),
    ("own_host", "../_static/logo.svg", "//a.b/c.svg", "a.b"),
    (
        "own_host",
        "</head>",
        "<script src='https://a.b/c.js'></script></head>",
        "c.js",
    ),
    ("ids", 'id="here"', 'id="start"', "'start' is there 2 times"),
    ("citations", "two.html#entry", "two.html#there", "1 sources are cited"),
    ("images", ' alt=""', "", "logo.svg has no alt"),
    ("images", "A line that rises.", "", "is empty"),
    ("images", "A line that rises.", "../_images/ab.svg", "a file name"),
    ("images", "A line that rises.", "0123456789abcdef01", "a file name"),
    ("images", "It rises.", "", "no caption"),
    ("images", "<figcaption>", "<div>", "no caption"),
    ("images", "<figure", "<div", "is no figure"),
    ("outputs", "text_plain", "traceback", "traceback"),
    ("outputs", "0.5", "Traceback (most recent call last):", "traceback"),
    ("outputs", "text_plain", "stderr", "stderr"),
    ("outputs", "0.5", "x.py:1: UserWarning: no", "UserWarning"),
    ("outputs", "0.5", "Warning: no", "Warning"),
    ("outputs", "0.5", "tensor([nan, 1.])", "nan"),
    ("outputs", "0.5", "NaN", "nan"),
    ("outputs", "tag_nan-explained ", "", "nan"),
    ("outputs", "0.5", "1\n" * 26, "26 lines"),
    (
        "outputs",
        "<pre>0.5</pre>",
        "<table>" + "<tr><td>1</td></tr>" * 26 + "</table>",
        "26 rows",
    ),
    ("prose_nan", "banana", "nan", "nan in a sentence"),
    ("prose_nan", "It rises.", "Up to NaN.", "nan in a sentence"),
    ("weight", "0.5", "a" * 1_500_001, "bytes"),
]


@pytest.mark.parametrize(("check", "old", "new", "message"), BAD)
def test_a_bad_page_is_rejected(folder, check, old, new, message):
    assert old in GOOD
    problems = found(folder, GOOD.replace(old, new)).get(check, [])
    assert any(message in problem for problem in problems), problems


def test_every_check_has_been_seen_to_fail():
    assert set(all_checks(None)) == {check for check, *_ in BAD}


def test_all_checks_of_the_module_are_in_this_file_and_run_on_the_book():
    defined = [name for name in dir(checks) if name.startswith("check_")]
    here = Path(__file__).read_text("utf8")
    book = Path(__file__).with_name("test_site.py").read_text("utf8")
    assert [name for name in defined if f"checks.{name}" not in here] == []
    assert [name for name in defined if f"checks.{name}" not in book] == []


def test_images_count_for_the_weight_of_a_page(folder):
    (folder / "book" / "line.svg").write_text(" " * 1_500_000)
    assert "weight" in found(folder, GOOD)


def test_a_problem_names_page_and_line(folder):
    (problem,) = found(folder, GOOD.replace("#here", "#gone"))["links"]
    assert problem.startswith("book/one.html:7: ")


def test_a_folded_output_may_be_long(folder):
    text = GOOD.replace("0.5", "1\n" * 26)
    assert "outputs" in found(folder, text)
    text = text.replace('"cell docutils', '"cell tag_hide-output docutils')
    assert "outputs" not in found(folder, text)
