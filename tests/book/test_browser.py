"""What a reader's browser must find on each page of the built site.

No request leaves the site, from a server or from a folder; nothing fails or
complains; formulas are typeset; nothing violates WCAG 2.1 A or AA, in light
or dark; a phone need not scroll sideways; code of 79 columns fits at 1366.
"""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from layout import pages

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = [pytest.mark.browser, pytest.mark.site]

PAGES = [*pages(), "genindex", "search"]
LAPTOP, PHONE = (1366, 768), (390, 844)  # CSS pixels
CODE_COLUMNS = 79
# On a narrow page other boxes scroll, and the keyboard must reach them.
PHONE_RULES = ["scrollable-region-focusable"]
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]

# Violations that only the theme could mend: {axe's rule: (selector, why)}.
EXCEPTIONS: dict[str, tuple[str, str]] = {}

# What is folded must hold to the rules too, so it is opened first.
UNFOLD = """() => {
    document.querySelectorAll("article details").forEach(
        (details) => { details.open = true; });
    document.querySelectorAll("article button.toggle-button-hidden").forEach(
        (button) => button.click());
}"""

SETTLED = """async () => {
    await document.fonts.ready;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
}"""

FORMULAS = r"""() => {
    const wrong = [];
    for (const math of document.querySelectorAll("article .math")) {
        const start = math.textContent.slice(0, 60);
        if (!math.querySelector(".katex")) wrong.push("not typeset: " + start);
    }
    for (const error of document.querySelectorAll(".katex-error"))
        wrong.push("error: " + (error.title || error.textContent));
    const walk = document.createTreeWalker(
        document.querySelector("article") || document.body,
        NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const { data, parentElement } = walk.currentNode;
        if (/\\[(\[]|\$\$/.test(data)
            && !parentElement.closest("pre, code, script, .katex, .math"))
            wrong.push("raw: " + data.trim().slice(0, 60));
    }
    return wrong;
}"""

CUT_CODE = """(columns) =>
    [...document.querySelectorAll("article pre")].filter((pre) => {
        const longest = Math.max(
            ...pre.textContent.split("\\n").map((line) => line.length));
        return pre.checkVisibility() && longest <= columns
            && pre.scrollWidth > pre.clientWidth;
    }).map((pre) => pre.textContent.trim().slice(0, 60))"""

# A few pixels are the room around the last sign.
CUT_FORMULAS = """() =>
    [...document.querySelectorAll("article .katex-display")].filter(
        (formula) => formula.checkVisibility()
            && formula.scrollWidth > formula.clientWidth + 3
    ).map((formula) => formula.textContent.trim().slice(0, 60))"""

# Thousands of words of code get their colors from a few rules, and the boxes
# of a formula have the color of the text. So that axe need not look at each,
# one word of each kind stays, in each kind of box, and formulas go.
THIN_OUT = """() => {
    document.querySelectorAll(".katex").forEach((katex) => katex.remove());
    const seen = new Set();
    for (const word of document.querySelectorAll("pre span[class]")) {
        const box = word.closest(
            ".cell_input, .cell_output, .admonition, article");
        const kind = [word.className, box && box.className].join(" in ");
        if (seen.has(kind)) word.replaceWith(...word.childNodes);
        seen.add(kind);
    }
}"""

WIDTH = "() => document.documentElement.scrollWidth"


class Visit:
    """A page in the browser, and what went wrong on the way to it."""

    def __init__(self, page) -> None:
        self.page = page
        self.host = ""
        self.problems: list[str] = []
        page.on("request", self._asked)
        page.on("requestfailed", lambda r: self._note("failed", r.url))
        page.on("response", self._answered)
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("console", self._logged)

    def open(self, url: str) -> None:
        self.page.goto("about:blank")  # what the last page says late is past
        self.host = urlsplit(url).netloc
        self.problems.clear()
        self.page.goto(url, wait_until="load")
        self.page.evaluate(SETTLED)
        self.page.evaluate(UNFOLD)
        self.page.evaluate(SETTLED)

    def _note(self, kind: str, text: str) -> None:
        self.problems.append(f"{kind}: {text}")

    def _asked(self, request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob", "about"):
            if address.netloc != self.host:
                self._note("another host", request.url)

    def _answered(self, response) -> None:
        if response.status >= 400:
            self._note(str(response.status), response.url)

    def _logged(self, message) -> None:
        if message.type in ("error", "warning"):
            self._note(f"console {message.type}", message.text)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = (shutil.which(name) for name in names)
    chromium = os.environ.get("CHROMIUM") or next(filter(None, found), None)
    if chromium is None:
        reason = (
            "No Chromium here: install it, or set CHROMIUM to its path. "
            f"Looked for {', '.join(names)}."
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    quiet = (
        "--no-sandbox --disable-gpu --disable-background-networking "
        "--disable-component-update --disable-sync --no-first-run"
    )
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=chromium, args=quiet.split()
        )
        yield started
        started.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def address(built_site: Path) -> Iterator[str]:
    """Serve the site, and return the address of its root."""
    handler = partial(_Quiet, directory=str(built_site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def visit(browser) -> Callable[..., Visit]:
    """Return a function that opens a page, with what it folds unfolded.

    Pages of one size and mode are read one after the other in one tab: to
    open a tab takes longer than to read a page.
    """
    tabs: dict[tuple, Visit] = {}

    def opened(url, *, size=LAPTOP, mode="light") -> Visit:
        if (size, mode) not in tabs:
            context = browser.new_context(
                viewport={"width": size[0], "height": size[1]},
                color_scheme=mode,
                reduced_motion="reduce",
            )
            tabs[size, mode] = Visit(context.new_page())
        tabs[size, mode].open(url)
        return tabs[size, mode]

    return opened


def violations(page, **only) -> list[str]:
    """Return what axe-core finds, without the documented exceptions."""
    options = {
        "runOnly": only or {"type": "tag", "values": WCAG},
        "resultTypes": ["violations"],
    }
    result = axe.Axe().run(page, options=options)
    found = []
    for rule in result.response["violations"]:
        selector, _ = EXCEPTIONS.get(rule["id"], (None, ""))
        for node in rule["nodes"]:
            target = " ".join(map(str, node["target"]))
            if selector is None or not re.search(selector, target):
                why = node["failureSummary"].replace("\n", " ")
                found.append(f"{rule['id']} at {target}: {why}")
    return found


def report(problems: list[str]) -> str:
    return "\n" + "\n".join(problems)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_and_asks_no_other_host(visit, address, page):
    seen = visit(f"{address}/{page}.html")
    assert not seen.problems, report(seen.problems)
    formulas = seen.page.evaluate(FORMULAS)
    assert not formulas, report(formulas)
    cut = seen.page.evaluate(CUT_CODE, CODE_COLUMNS)
    assert not cut, report(cut)
    cut = seen.page.evaluate(CUT_FORMULAS)
    assert not cut, report(cut)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_without_a_server(visit, built_site, page):
    url = (built_site / f"{page}.html").as_uri()
    seen = visit(url)
    assert not seen.problems, report(seen.problems)
    formulas = seen.page.evaluate(FORMULAS)
    assert not formulas, report(formulas)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_open_to_all_readers(visit, address, page, mode):
    seen = visit(f"{address}/{page}.html", mode=mode)
    shown = seen.page.evaluate("document.documentElement.dataset.theme")
    assert shown == mode
    seen.page.evaluate(THIN_OUT)
    found = violations(seen.page)
    assert not found, report(found)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_phone(visit, address, page):
    seen = visit(f"{address}/{page}.html", size=PHONE)
    assert seen.page.evaluate(WIDTH) <= PHONE[0]
    found = violations(seen.page, type="rule", values=PHONE_RULES)
    assert not found, report(found)


# Each check must be able to fail ------------------------------------------

BROKEN = """<!doctype html><html lang="en"><title>Broken</title>
<article><h1>Broken</h1>%s</article>"""


def test_the_sliders_find_each_gate_but_xor(visit, built_site):
    page = visit((built_site / "book/nn/01_neuron.html").as_uri()).page
    sliders = page.locator(".neuron-plane input")

    def corners_right(gate, *numbers):
        page.select_option(".neuron-plane select", gate)
        for slider, number in zip(sliders.all(), numbers, strict=True):
            slider.fill(str(number))
        return page.locator(".neuron-plane p").inner_text()[0]

    assert corners_right("AND", 1, 1, -1.5) == "4"
    assert corners_right("AND", 1, 1, -0.5) == "2"
    assert corners_right("OR", 1, 1, -1) == "4"  # a sum of 0 fires
    assert corners_right("NAND", -1, -1, 1.5) == "4"
    grid = product((-2, -0.5, 1, 3), repeat=3)
    assert max(corners_right("XOR", *numbers) for numbers in grid) == "3"


def _broken(tmp_path: Path, inside: str) -> str:
    path = tmp_path / "broken.html"
    path.write_text(BROKEN % inside, encoding="utf8")
    return path.as_uri()


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        ("<img src='http://another.invalid/x.png' alt=''>", "another host"),
        ("<img src='missing.png' alt=''>", "failed"),
        ("<script>console.error('no')</script>", "console error"),
        ("<script>missing()</script>", "error: missing is not defined"),
    ],
)
def test_what_goes_wrong_on_the_way_is_noticed(
    visit, tmp_path, inside, problem
):
    seen = visit(_broken(tmp_path, inside))
    assert problem in report(seen.problems)


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        (r"<span class='math'>\(x\)</span>", "not typeset"),
        ("<span class='katex-error' title='bad'>x</span>", "error: bad"),
        (r"<p>where \(x\) is</p>", "raw"),
        ("<p>$$ x $$</p>", "raw"),
    ],
)
def test_a_formula_left_raw_is_noticed(visit, tmp_path, inside, problem):
    seen = visit(_broken(tmp_path, inside))
    assert problem in report(seen.page.evaluate(FORMULAS))


def test_code_that_is_cut_is_noticed(visit, tmp_path):
    line = "<pre style='width: 300px; overflow: auto'>" + "x" * CODE_COLUMNS
    seen = visit(_broken(tmp_path, line + "</pre>"))
    assert seen.page.evaluate(CUT_CODE, CODE_COLUMNS)
    assert not seen.page.evaluate(CUT_CODE, CODE_COLUMNS - 1)


@pytest.mark.parametrize(("width", "is_cut"), [(320, True), (400, False)])
def test_a_formula_that_is_cut_is_noticed(visit, tmp_path, width, is_cut):
    formula = (
        f"<div class='katex-display' style='width: {width}px; overflow: auto'>"
        "<div style='width: 400px'>x</div></div>"
    )
    seen = visit(_broken(tmp_path, formula))
    assert bool(seen.page.evaluate(CUT_FORMULAS)) == is_cut


def test_a_page_wider_than_a_phone_is_noticed(visit, tmp_path):
    wide = "<div style='width: 500px'>wide</div>"
    seen = visit(_broken(tmp_path, wide), size=PHONE)
    assert seen.page.evaluate(WIDTH) > PHONE[0]


@pytest.mark.parametrize(
    ("inside", "rule"),
    [
        ("<img src='data:,'>", "image-alt"),
        ("<p style='color: #bbb; background: #fff'>pale</p>", "contrast"),
    ],
)
def test_what_shuts_readers_out_is_noticed(visit, tmp_path, inside, rule):
    seen = visit(_broken(tmp_path, inside))
    assert rule in report(violations(seen.page))


def test_no_more_than_two_exceptions():
    assert len(EXCEPTIONS) <= 2
    assert all(why for _, why in EXCEPTIONS.values())
