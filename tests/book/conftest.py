"""What the tests of the book share: the built site."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from layout import ROOT, SITE

BUILD = (
    "import sys; from jupyter_book.cli.main import main; "
    "sys.argv = ['jupyter-book', 'build', '.', '-W', '--keep-going']; main()"
)
SHOWN_LINES = 80


@pytest.fixture(scope="session")
def book_build(tmp_path_factory) -> tuple[int, str]:
    """Build what is not yet built; return exit status and end of the log.

    Several workers of one run build once: the first that comes builds, and
    leaves the result for the others.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    result = shared / "book-build.log"
    with FileLock(shared / "book-build.lock"):
        if not result.exists():
            result.write_text(_build(), encoding="utf8")
    status, _, log = result.read_text(encoding="utf8").partition("\n")
    return int(status), log


@pytest.fixture(scope="session")
def built_site(book_build) -> Path:
    """Return the folder of the built site."""
    status, _ = book_build
    if status != 0:
        pytest.fail(
            "the book does not build: see test_the_book_builds in "
            "tests/book/test_site.py",
            pytrace=False,
        )
    return SITE


def _build() -> str:
    """Return the exit status, and the end of the log below it."""
    result = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf8",
        errors="replace",
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", result.stdout)
    end = plain.splitlines()[-SHOWN_LINES:]
    return "\n".join([str(result.returncode), *end])
