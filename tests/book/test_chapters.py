"""Every page of the table of contents keeps the rules for its source."""

import chapter_checks as checks
import pytest
from layout import ROOT, assert_none, chapter_modules, is_chapter, pages

PAGES = pages()
CHAPTERS = [page for page in PAGES if is_chapter(page)]
every_page = pytest.mark.parametrize("page", PAGES)
every_chapter = pytest.mark.parametrize("page", CHAPTERS)


def source(page):
    return checks.read(ROOT / f"{page}.md")


def module_file(module):
    return ROOT / "src" / "scratch" / f"{module}.py"


@pytest.fixture(scope="module")
def keys():
    bibtex = (ROOT / "book" / "references.bib").read_text("utf8")
    return checks.bibliography_keys(bibtex)


@pytest.fixture(scope="module")
def public():
    """The functions, classes and constants of all of scratch."""
    files = (ROOT / "src" / "scratch").rglob("*.py")
    return {
        name
        for file in files
        for name in checks.public_names(file.read_text("utf8"))
    }


def test_the_book_has_chapters():
    assert CHAPTERS


@every_page
def test_front_matter_is_complete(page):
    parsed = source(page)
    needed = is_chapter(page) or parsed.cells
    problems = checks.check_front_matter(parsed) if needed else []
    assert_none(problems)


@every_chapter
def test_the_frame_is_in_order(page):
    problems = checks.check_frame(source(page))
    assert_none(problems)


@every_chapter
def test_exercises_have_asserted_solutions(page):
    problems = checks.check_exercises(source(page))
    assert_none(problems)


@every_chapter
def test_an_exercise_has_a_checker(page):
    problems = checks.check_checker(source(page))
    assert_none(problems)


@every_chapter
def test_figures_have_captions_and_descriptions(page):
    problems = checks.check_figures(source(page))
    assert_none(problems)


@every_page
def test_cells_are_short_and_narrow_and_run(page):
    parsed = source(page)
    problems = [
        *checks.check_cell_length(parsed),
        *checks.check_columns(parsed),
        *checks.check_cells_outside_directives(parsed),
    ]
    assert_none(problems)


@every_page
def test_listings_name_what_they_show(page):
    problems = checks.check_listings(source(page))
    assert_none(problems)


@every_chapter
def test_the_chapter_shows_its_module(page):
    parsed = source(page)
    problems = []
    for module in chapter_modules(page):
        file = module_file(module)
        assert file.is_file(), f"{page} has no module {file}"
        problems += checks.check_public_names(
            parsed, module, file.read_text("utf8")
        )
    assert_none(problems)


@every_page
def test_no_cell_redefines_a_name_of_scratch(page, public):
    problems = checks.check_no_redefinition(source(page), public)
    assert_none(problems)


@every_page
def test_prose_promises_nothing(page):
    assert_none(checks.check_words(source(page)))


@every_chapter
def test_prose_types_no_results(page):
    assert_none(checks.check_typed_numbers(source(page)))


@every_page
def test_citations_are_in_the_bibliography(page, keys):
    problems = checks.check_citations(source(page), keys)
    assert_none(problems)
