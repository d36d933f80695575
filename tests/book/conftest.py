"""What the tests of the book share: the built site."""

import os
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
SHOWN_LINES = 60


@pytest.fixture(scope="session")
def built_site(tmp_path_factory) -> Path:
    """Build what is not yet built, and return the folder of the site.

    Several workers of one run build once: the first that comes builds, and
    leaves the end of its log for the others.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    log = shared / "book-build.log"
    with FileLock(shared / "book-build.lock"):
        if not log.exists():
            log.write_text(_build(), encoding="utf8")
    status, _, output = log.read_text(encoding="utf8").partition("\n")
    if status != "0":
        pytest.fail(
            "The book does not build (jupyter-book build . -W --keep-going "
            f"ends with {status}):\n{output}",
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
        env=os.environ | {"PYTHONUTF8": "1", "NO_COLOR": "1"},
    )
    end = result.stdout.splitlines()[-SHOWN_LINES:]
    return "\n".join([str(result.returncode), *end])
