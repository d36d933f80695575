"""Every page of the built site keeps the rules for what a reader sees."""

import pytest
import site_checks as checks
from chapter_checks import cited_keys, read
from layout import ROOT, assert_none, is_chapter, pages

pytestmark = pytest.mark.site

PAGES = pages()
every_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="session")
def site(built_site):
    return checks.Site(built_site, PAGES)


@pytest.fixture
def html(site, page):
    path = f"{page}.html"
    assert path in site.pages, f"{page} of _toc.yml was not built"
    return site.pages[path]


def test_the_book_builds(book_build):
    status, log = book_build
    if status != 0:
        pytest.fail(
            f"jupyter-book build . -W --keep-going ends with {status}:\n{log}",
            pytrace=False,
        )


@every_page
def test_links_lead_somewhere(site, html):
    problems = checks.check_links(html, site)
    assert_none(problems)


def test_links_of_generated_pages_lead_somewhere(site):
    own = {f"{page}.html" for page in PAGES}
    rest = [page for path, page in site.pages.items() if path not in own]
    problems = [p for page in rest for p in checks.check_links(page, site)]
    assert "index.html" in site.pages
    assert_none(problems)


@every_page
def test_no_page_asks_another_server(html):
    problems = checks.check_own_host(html)
    assert_none(problems)


@every_page
def test_ids_are_unique(html):
    problems = checks.check_ids(html)
    assert_none(problems)


@every_page
def test_citations_are_linked(site, html, page):
    cited = {key for _, key in cited_keys(read(ROOT / f"{page}.md"))}
    problems = checks.check_citations(html, site, len(cited))
    assert_none(problems)


@every_page
def test_images_are_described(html):
    problems = checks.check_images(html)
    assert_none(problems)


@pytest.mark.parametrize("page", [p for p in PAGES if is_chapter(p)])
def test_a_chapter_shows_a_figure(html):
    assert html.article.select("figure img, figure svg")


@every_page
def test_outputs_are_clean_and_short(html):
    problems = [*checks.check_outputs(html), *checks.check_prose_nan(html)]
    assert_none(problems)


@every_page
def test_pages_are_light(site, html):
    problems = checks.check_weight(html, site)
    assert_none(problems)
