"""Take the picture of a page that README.md shows.

Usage: python .ci/picture.py [page selector]
Wants the built site and Chromium. The page is shown from just above the
first thing that the selector finds.
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "book" / "_static" / "readme-page.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 800}
MAX_BYTES = 300_000


def take(page: str, selector: str) -> bytes:
    """Return the window as PNG, scrolled to what the selector finds."""
    file = ROOT / "_build" / "html" / f"{page}.html"
    if not file.is_file():
        sys.exit(f"{page} is not built. Run `make book` first.")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        tab = browser.new_page(viewport=SIZE, color_scheme="light")
        tab.goto(file.as_uri())
        tab.evaluate("document.fonts.ready")
        tab.evaluate(
            """selector => {
                const place = document.querySelector(selector);
                place.scrollIntoView({block: "center"});
            }""",
            selector,
        )
        tab.wait_for_timeout(1000)  # formulas, and images below the fold
        picture = tab.screenshot()
        browser.close()
    return picture


def main() -> None:
    page, selector = sys.argv[1:] or ("book/nn/01_neuron", "article figure")
    image = Image.open(BytesIO(take(page, selector))).convert("RGB")
    image.save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    print(f"{PICTURE.relative_to(ROOT)}: {size:,} bytes")
    if size > MAX_BYTES:
        sys.exit(f"must have at most {MAX_BYTES:,} bytes, got {size:,}")


if __name__ == "__main__":
    main()
