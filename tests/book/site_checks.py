"""What must hold for the built site, as functions over its pages.

Each check takes a page of HTML and returns the problems that it found.
test_site.py runs them over the book; test_site_checks.py shows for each one
that it can fail.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag
from layout import Problem

MAX_OUTPUT_LINES = 25
MAX_PAGE_BYTES = 1_500_000

_FILE_NAME = re.compile(r"\.(png|svg|jpe?g|gif|webp)\b|^_?images?/", re.I)
_HASH = re.compile(r"\b[0-9a-f]{16,}\b")
_WARNING = re.compile(r"\b[A-Za-z]*Warning\b")
_NAN = re.compile(r"(?<![\w-])nan(?![\w-])", re.IGNORECASE)


@dataclass
class SitePage:
    """A built page: where it lies in the site, and its HTML."""

    path: str  # relative to the site, "book/nn/01_neuron.html"
    html: str = field(repr=False)

    @cached_property
    def soup(self) -> BeautifulSoup:
        return BeautifulSoup(self.html, "html.parser")

    @cached_property
    def ids(self) -> list[str]:
        ids = [tag["id"] for tag in self.soup.find_all(id=True)]
        return ids + [
            tag["name"]
            for tag in self.soup.find_all("a", attrs={"name": True})
            if tag.get("id") != tag["name"]
        ]

    @property
    def article(self) -> Tag:
        return self.soup.find("article") or self.soup

    def problem(self, tag: Tag | None, message: str) -> Problem:
        line = tag.sourceline if tag is not None else 1
        return Problem(self.path, line or 1, message)


class Site:
    """The built pages that belong to this book, and the files beside them.

    What an earlier build left behind of a page that has gone since does not
    count as there.
    """

    def __init__(self, folder: Path, pages: list[str]) -> None:
        self.folder = folder.resolve()
        wanted = {f"{page}.html" for page in pages}
        own_folders = {page.split("/")[0] for page in pages if "/" in page}
        self.pages = {}
        for file in sorted(self.folder.rglob("*.html")):
            path = file.relative_to(self.folder).as_posix()
            top = path.split("/")[0]
            if path in wanted or top not in own_folders | {"_static"}:
                html = file.read_text(encoding="utf8")
                self.pages[path] = SitePage(path, html)

    def file(self, page: SitePage, path: str) -> str | None:
        """Return the file of the site that a page's link means, or None."""
        target = (self.folder / page.path).parent / path if path else None
        if target is None:
            return page.path
        target = Path(target).resolve()
        if not target.is_file() or not target.is_relative_to(self.folder):
            return None
        found = target.relative_to(self.folder).as_posix()
        is_page = found.endswith(".html") and not found.startswith("_static/")
        return None if is_page and found not in self.pages else found


# Links


def _targets(page: SitePage) -> Iterator[tuple[Tag, str]]:
    for tag in page.soup.find_all(True):
        for attribute in ("href", "src", "data", "poster", "xlink:href"):
            if attribute == "data" and tag.name != "object":
                continue
            if tag.get(attribute):
                yield tag, tag[attribute]
        for source in (tag.get("srcset") or "").split(","):
            if source.strip():
                yield tag, source.split()[0]
        if str(tag.get("http-equiv", "")).lower() == "refresh":
            _, _, url = str(tag.get("content", "")).partition("url=")
            if url:
                yield tag, url.strip()


def check_links(page: SitePage, site: Site) -> list[Problem]:
    """Each link within the site leads to a file, and to a place in it."""
    problems = []
    for tag, link in _targets(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        found = site.file(page, unquote(parts.path))
        if found is None:
            problems.append(
                page.problem(
                    tag,
                    f"<{tag.name}> leads to {link}, which is not in the site. "
                    "Mend the link in the source, or add the page to _toc.yml",
                )
            )
        elif parts.fragment and found in site.pages:
            if unquote(parts.fragment) not in site.pages[found].ids:
                problems.append(
                    page.problem(
                        tag,
                        f"{link} leads to a place that {found} does not "
                        "have. Mend the label in the source",
                    )
                )
    return problems


def check_own_host(page: SitePage) -> list[Problem]:
    """Reading a page asks no other server for anything."""
    loads = {
        *("img", "script", "iframe", "source", "video", "audio", "embed"),
        "object",
    }
    links = {"stylesheet", "preload", "icon", "modulepreload", "preconnect"}
    problems = []
    for tag, link in _targets(page):
        asks = tag.name in loads or (
            tag.name == "link" and links & set(tag.get("rel") or [])
        )
        parts = urlsplit(link)
        if asks and (parts.netloc or parts.scheme not in ("", "data")):
            problems.append(
                page.problem(
                    tag,
                    f"<{tag.name}> loads {link} from elsewhere. Serve the "
                    "file from book/_static",
                )
            )
    return problems


def check_ids(page: SitePage) -> list[Problem]:
    """No id stands for two places."""
    return [
        page.problem(
            page.soup.find(id=name),
            f"id {name!r} is there {count} times. Give one of the labels "
            "another name",
        )
        for name, count in Counter(page.ids).items()
        if count > 1
    ]


def check_citations(page: SitePage, site: Site, n_cited: int) -> list[Problem]:
    """The keys that the source cites are links to entries of a bibliography.

    Args:
        n_cited: distinct keys that the page's source cites.
    """
    entries = {
        (path, tag["id"])
        for path, other in site.pages.items()
        for tag in other.soup.select("[id][role=doc-biblioentry], .citation")
        if tag.get("id")
    }
    linked = set()
    for tag in page.article.select("a[href]"):
        parts = urlsplit(tag["href"])
        found = site.file(page, unquote(parts.path))
        if (found, parts.fragment) in entries:
            linked.add((found, parts.fragment))
    if len(linked) >= n_cited:
        return []
    return [
        page.problem(
            None,
            f"{n_cited} sources are cited, {len(linked)} are linked to the "
            "list of references. Is each key in book/references.bib?",
        )
    ]


# Figures


def check_images(page: SitePage) -> list[Problem]:
    """Each image is described in words; each figure has a caption."""
    problems = []
    for image in page.soup.find_all("img"):
        alt = image.get("alt")
        figure = image.find_parent("figure")
        output = image.find_parent(class_="cell_output")
        name = unquote(image.get("src", "")).split("/")[-1]
        if alt is None:
            problems.append(
                page.problem(image, f"image {name} has no alt. Describe it")
            )
        elif _FILE_NAME.search(alt) or _HASH.search(alt):
            problems.append(
                page.problem(
                    image,
                    f"the alt of {name} is a file name. Describe the picture "
                    "with `mystnb: image: alt:` or :alt:",
                )
            )
        elif not alt.strip() and (figure or output):
            problems.append(
                page.problem(image, f"the alt of {name} is empty. Describe it")
            )
        if output and not figure:
            problems.append(
                page.problem(
                    image,
                    f"the image {name} of a cell is no figure. Give the cell "
                    "`mystnb: figure:` with a name and a caption",
                )
            )
    for figure in page.article.find_all("figure"):
        caption = figure.find("figcaption")
        words = caption.select_one(".caption-text") if caption else None
        words = words or caption
        if words is None or not words.get_text(strip=True).strip("#"):
            problems.append(page.problem(figure, "figure has no caption"))
    return problems


# Outputs


def check_outputs(page: SitePage) -> list[Problem]:
    """Nothing a reader must worry about, and nothing endless."""
    problems = []
    for output in page.article.select(".cell_output .output"):
        if output.find_parent(class_="output"):
            continue
        text = output.get_text()
        cell = output.find_parent(class_="cell")
        tags = set(cell.get("class", [])) if cell else set()
        kinds = set(output.get("class", []))
        if "traceback" in kinds or "Traceback (most recent" in text:
            message = (
                "traceback in an output. Show an error with try, except and "
                "print(error)"
            )
        elif "stderr" in kinds:
            message = (
                f"output on stderr: {text.strip()[:60]!r}. Mend its cause"
            )
        elif _WARNING.search(text):
            name = _WARNING.search(text)[0]
            message = f"{name} in an output. Mend its cause"
        elif _NAN.search(text) and "tag_nan-explained" not in tags:
            message = (
                "nan in an output. Mend it; or explain it in the text and "
                "tag the cell nan-explained"
            )
        elif (
            len(text.strip("\n").splitlines()) > MAX_OUTPUT_LINES
            and "table" not in [tag.name for tag in output.find_all(True)]
            and not tags & {"tag_hide-output", "tag_hide-cell"}
        ):
            message = (
                f"output of {len(text.strip().splitlines())} lines, at most "
                f"{MAX_OUTPUT_LINES}. Show less"
            )
        else:
            continue
        problems.append(page.problem(output, message))
    for table in page.article.select(".cell_output table"):
        rows = len(table.find_all("tr"))
        if rows > MAX_OUTPUT_LINES:
            problems.append(
                page.problem(
                    table,
                    f"table of {rows} rows, at most {MAX_OUTPUT_LINES}. "
                    "Show less",
                )
            )
    return problems


def check_prose_nan(page: SitePage) -> list[Problem]:
    """No glued number in a sentence is nan."""
    problems = []
    for tag in page.article.find_all(["p", "li", "td", "figcaption"]):
        if tag.find_parent(class_="output"):
            continue
        own = [
            text
            for text in tag.find_all(string=True)
            if not text.find_parent(["code", "pre", "script"])
            and text.find_parent(["p", "li", "td", "figcaption"]) is tag
            and not text.find_parent(class_="math")
        ]
        if any(_NAN.search(text) for text in own):
            problems.append(
                page.problem(
                    tag,
                    "nan in a sentence. If a glued number is nan, mend its "
                    "cell; the word itself is code: `nan`",
                )
            )
    return problems


# Weight


def check_weight(page: SitePage, site: Site) -> list[Problem]:
    """A page with its images loads fast on a phone."""
    images = {
        found
        for tag, link in _targets(page)
        if tag.name in ("img", "source", "object", "video")
        and not urlsplit(link).scheme
        and (found := site.file(page, unquote(urlsplit(link).path)))
    }
    size = len(page.html.encode("utf8")) + sum(
        (site.folder / image).stat().st_size for image in images
    )
    if size <= MAX_PAGE_BYTES:
        return []
    return [
        page.problem(
            None,
            f"page and images have {size:,} bytes, at most "
            f"{MAX_PAGE_BYTES:,}. Plot fewer points, rasterize dense parts",
        )
    ]
