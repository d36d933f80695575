"""Each check of a chapter's source accepts a good one and rejects a bad."""

from functools import partial
from pathlib import Path

import chapter_checks as checks
import pytest

GOOD = (Path(__file__).parent / "sample_chapter.md").read_text("utf8")
MODULE = '''"""A module."""


def doubled(x: float) -> float:
    """Return twice x."""
    return 2 * x
'''
PATH = "book/sample/01_module.md"
KEYS = {"known2020", "other2021"}


@pytest.fixture
def root(tmp_path):
    file = tmp_path / "src" / "scratch" / "sample" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text(MODULE, "utf8")
    (tmp_path / "book" / "sample").mkdir(parents=True)
    return tmp_path


def all_checks(root):
    return {
        "front_matter": checks.check_front_matter,
        "frame": checks.check_frame,
        "exercises": checks.check_exercises,
        "checker": checks.check_checker,
        "figures": checks.check_figures,
        "cell_length": checks.check_cell_length,
        "columns": checks.check_columns,
        "listings": partial(checks.check_listings, root=root),
        "public_names": partial(
            checks.check_public_names, module="sample/module", source=MODULE
        ),
        "no_redefinition": partial(
            checks.check_no_redefinition, public={"doubled", "softmax"}
        ),
        "words": checks.check_words,
        "typed_numbers": checks.check_typed_numbers,
        "citations": partial(checks.check_citations, keys=KEYS),
        "cells_outside": checks.check_cells_outside_directives,
    }


def found(root, text):
    """Return what each check says about a text, where it says anything."""
    page = checks.parse(text, PATH)
    answers = {
        name: [str(problem) for problem in check(page)]
        for name, check in all_checks(root).items()
    }
    return {name: answer for name, answer in answers.items() if answer}


def test_a_good_chapter_passes_every_check(root):
    assert found(root, GOOD) == {}


KERNEL = (
    "kernelspec: {display_name: Python 3, language: python, name: python3}"
)
JUPYTEXT = "  text_representation: {extension: .md, format_name: myst}"
QUESTION = "**The question.** What does a chapter need to pass every check?"
BOX = "You need nothing. You will be able to break one rule at a time.\n"
WIDE = "x = 1  # " + "w" * 71

# (the check that must see it, what to replace, by what, part of the message)
BAD = [
    ("front_matter", KERNEL, "kernelspec: {name: python3}", "kernelspec"),
    (
        "front_matter",
        KERNEL,
        KERNEL.replace("Python 3", "Python 3.11"),
        "kernelspec must be",
    ),
    ("front_matter", KERNEL, "author: me", "got None"),
    ("front_matter", JUPYTEXT, "  notebook_metadata: {}", "jupytext"),
    ("front_matter", "format_name: myst", "format_name: md", "jupytext"),
    ("front_matter", "minutes: 20", "minutes: 0", "minutes"),
    ("front_matter", "minutes: 20", "minutes: soon", "minutes"),
    ("front_matter", "minutes: 20", "minutes: {read: 999}", "minutes"),
    ("frame", "# A chapter as it must be\n", "", "one title"),
    ("frame", QUESTION, "What does it need?", "The question"),
    ("frame", "## The idea\n", "## The notion\n", "`## The idea`"),
    ("frame", "## The code\n", "## Our code\n", "`## The code`"),
    ("frame", "## Experiment: does", "## Does", "`## Experiment`"),
    ("frame", "## Pitfalls\n", "### Pitfalls\n", "`## Pitfalls`"),
    ("frame", "## Exercises\n", "## Try it\n", "`## Exercises`"),
    ("frame", "## Summary\n", "## In short\n", "`## Summary`"),
    ("frame", "## Further reading\n", "## More\n", "`## Further reading`"),
    ("frame", "## Summary\n", "## Summary\n\n## Summary\n", "come once"),
    (
        "frame",
        "## Three numbers by hand\n",
        "## Experiment: too soon\n",
        "comes too early",
    ),
    ("frame", "because it is known.\n", "so.\n\n## End\n", "the last"),
    ("frame", "} In this chapter", "} Here", "In this chapter"),
    ("frame", BOX, "", "is empty"),
    ("frame", "# A chapter", "```\n# no\n```\n## A chapter", "one title"),
    ("exercises", "```{exercise} Third", "```{note}", "at least 3"),
    ("exercises", ":label: ex-first\n", ":label: other\n", "one solution"),
    ("exercises", ":label: ex-first\n", "", "no :label:"),
    ("exercises", ":label: ex-third\n", ":label: ex-first\n", "taken twice"),
    (
        "exercises",
        "solution-start} ex-third",
        "solution-start} ex-first",
        "got 2",
    ),
    ("exercises", ":class: dropdown\n", "", "not folded"),
    (
        "exercises",
        "ex-first\n:class: dropdown",
        "gone\n:class: dropdown",
        "no exercise",
    ),
    ("exercises", "assert answer == 4\n", "answer == 4\n", "asserts nothing"),
    ("exercises", "assert answer == 4\n", "assert True\n", "asserts nothing"),
    (
        "exercises",
        "assert answer == 4\n",
        "def test():\n    assert answer == 4\n",
        "asserts nothing",
    ),
    (
        "exercises",
        "answer = 3 * 2\n",
        ":tags: [skip-execution]\n\nanswer = 3 * 2\n",
        "ex-third asserts nothing",
    ),
    ("exercises", "{solution-end}", "{note}", "asserts nothing"),
    ("checker", "scratch.exercises.sample", "elsewhere", "checker"),
    ("checker", "= check_double(my_double)", "= my_double(2)", "checker"),
    ("figures", "    caption: The line", "    other: The line", "caption"),
    ("figures", "    alt: A line from", "    other: A", "describes it"),
    (
        "figures",
        "    alt: A line from the lower left to the upper right.",
        "    alt: plot.svg",
        "describes it",
    ),
    ("figures", "  figure:\n    name", "  extra:\n    name", "at least one"),
    ("figures", "One.\n", "![A fine picture](a.png)\n", "figure directive"),
    ("figures", "One.\n", "```{figure} a.png\nSo.\n```\n", "describes it"),
    (
        "figures",
        "One.\n",
        "```{figure} a.png\n:alt: one two three\n```\n",
        "no caption",
    ),
    (
        "figures",
        "One.\n",
        "```{image} a.png\n:alt: one two three\n```\n",
        "no caption",
    ),
    ("cell_length", "total\n```", "total\n" * 25 + "```", "26 lines"),
    ("columns", "total\n```", WIDE + "\n```", "80 columns"),
    ("columns", "plot(doubled)\n", WIDE + "\n", "80 columns"),
    ("columns", "One.\n", f"```python\n{WIDE}\n```\n", "80 columns"),
    ("listings", ":pyobject: doubled\n", "", "no :pyobject:"),
    ("listings", ':caption: "', ':other: "', "no :caption:"),
    ("listings", ":name: code-doubled\n", "", "no :name:"),
    ("listings", ":name: code", ":lines: 1-3\n:name: code", ":lines:"),
    ("listings", "module.py", "gone.py", "does not exist"),
    ("listings", ":pyobject: doubled", ":pyobject: tripled", "tripled"),
    ("public_names", "doubled", "tripled", "`doubled`"),
    ("no_redefinition", "total = sum", "doubled = sum", "`doubled`"),
    ("no_redefinition", "plot(doubled)", "for doubled in []: pass", "doubled"),
    (
        "no_redefinition",
        "def my_double(x):\n    return",
        "def softmax(x):\n    return",
        "`softmax`",
    ),
    (
        "no_redefinition",
        "plot(doubled)",
        "class softmax: pass",
        "`softmax`",
    ),
    ("words", "One.\n", "It just works.\n", "`just`"),
    ("words", "One.\n", "Simply one.\n", "`Simply`"),
    ("words", "One.\n", "It is obviously so.\n", "`obviously`"),
    ("words", "One.\n", "It is, of\ncourse, so.\n", "`of course`"),
    ("words", "One.\n", "A powerful tool.\n", "`powerful`"),
    ("words", "The line rises", "The line just rises", "`just`"),
    ("words", "You need nothing", "You just need", "`just`"),
    ("words", "What is twice two", "What is simply two", "`simply`"),
    ("words", "## Pitfalls\n", "## Pitfalls\n\n### Just so\n", "`Just`"),
    ("typed_numbers", "One.\n", "The loss is 0.123 nats.\n", "`0.123`"),
    ("typed_numbers", "% typed: the value of pi", "% pi", "`3.14159`"),
    ("citations", "known2020,other2021", "known2020, gone", "gone is not"),
    ("citations", "{cite:t}`known2020`", "{cite}`missing`", "missing is not"),
    (
        "cells_outside",
        "And three?\n```\n",
        "And three?\n```\n\n:::{note}\n```{code-cell}\n1\n```\n:::\n",
        "not executed",
    ),
    (
        "cells_outside",
        "And three?\n```\n",
        "And three?\n```\n\n````{unheard-of}\n```{code-cell}\n1\n```\n````\n",
        "not executed",
    ),
]


@pytest.mark.parametrize(("check", "old", "new", "message"), BAD)
def test_a_bad_chapter_is_rejected(root, check, old, new, message):
    assert old in GOOD
    problems = found(root, GOOD.replace(old, new)).get(check, [])
    assert any(message in problem for problem in problems), problems


def test_every_check_has_been_seen_to_fail(root):
    assert set(all_checks(root)) == {check for check, *_ in BAD}


def test_all_checks_of_the_module_are_in_this_file_and_run_on_the_book(root):
    defined = {name for name in dir(checks) if name.startswith("check_")}
    here = Path(__file__).read_text("utf8")
    book = Path(__file__).with_name("test_chapters.py").read_text("utf8")
    assert [name for name in defined if f"checks.{name}" not in here] == []
    assert [name for name in defined if f"checks.{name}" not in book] == []


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("One.\n", "Two.\nIt just\nworks.\n", "just\nworks."),
        ("One.\n", "The loss\nis 0.123.\n", "is 0.123."),
        ("total\n```", f"total\n{WIDE}\n```", WIDE),
        ("total = sum", "doubled = sum", "doubled = sum"),
        ("known2020`, because", "gone`, because", "- {cite:t}`gone`"),
        (
            ":class: dropdown\n```\n\nIt is",
            "```\n\nIt is",
            "```{solution-start} ex-first",
        ),
    ],
)
def test_a_problem_names_its_line(root, old, new, place):
    text = GOOD.replace(old, new, 1)
    line = text[: text.index(place)].count("\n") + 1
    if place.startswith("just"):
        assert text.splitlines()[line - 1] == "It just"
    problems = [p for answer in found(root, text).values() for p in answer]
    assert problems
    assert all(p.startswith(f"{PATH}:{line}: ") for p in problems), problems


@pytest.mark.parametrize("tag", sorted(checks.INPUT_HIDDEN))
def test_a_folded_cell_may_be_long(root, tag):
    cell = f"total\n```\n\n```{{code-cell}}\n:tags: [{tag}]\n" + "total\n" * 30
    text = GOOD.replace("total\n```", cell + "```")
    assert "cell_length" not in found(root, text)


@pytest.mark.parametrize(
    "prose",
    [
        "Adjust the justice of it.",
        "Code `just a\nword` over two lines.",
        "A role {term}`just`.",
        '"It just works", they say.',
        "> It is obviously so.",
        "A [link](https://example.org/just).",
        "$$\na = 0.12345\n\n+ b\n$$",
        "\\begin{align}\na &= 0.12345\n\\end{align}",
        "Version 1.2.345 of 10.5281/zenodo.",
        "Two decimals: 0.12.",
        "A learning rate of 0.001.",
        "% just a comment with 0.12345",
    ],
)
def test_what_is_not_prose_is_not_read_as_prose(root, prose):
    assert found(root, GOOD.replace("One.\n", prose + "\n")) == {}


def test_a_wide_listing_is_measured_after_its_dedent(root):
    module = root / "src" / "scratch" / "sample" / "module.py"
    body = f"        return {'w' * 68}\n"
    module.write_text(f"class A:\n    def f(self):\n{body}", "utf8")
    text = GOOD.replace(":pyobject: doubled", ":pyobject: A.f")
    assert "83 columns" in found(root, text)["listings"][0]
    text = text.replace("A.f\n", "A.f\n:dedent: 4\n")
    assert "listings" not in found(root, text)


def test_a_listing_shows_decorators():
    source = "@cache\ndef f():\n    ...\n\nx = 1\n"
    assert checks.listed(source, "f") == "@cache\ndef f():\n    ..."


def test_names_in_functions_of_a_cell_are_its_own(root):
    text = GOOD.replace("plot(doubled)", "def p():\n    doubled = 1")
    assert "no_redefinition" not in found(root, text)
