"""Note which files of the book a chapter and its subprocesses open.

Python imports a module of this name, if it finds one, when it starts. The
kernel of a chapter finds this one through PYTHONPATH, before any cell runs,
and so do the Python programs that a chapter starts. Nothing appears in the
notebook.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _watch(root: str, log: str) -> None:
    """Append a line "r path" or "w path" to log for each file opened in root.

    "w" means that the file was made or emptied: what is read from it later
    is the chapter's own.
    """
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    outside = (sys.prefix + os.sep, sys.base_prefix + os.sep)
    seen = set()

    def note(event, args):
        if event != "open":
            return
        path, _, flags = args
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        if flags & (os.O_TRUNC | os.O_EXCL):
            kind = "w"
        elif flags & os.O_WRONLY:
            return
        else:
            kind = "r"
        path = os.path.abspath(os.fsdecode(path))
        if path.startswith(outside) or (kind, path) in seen:
            return
        seen.add((kind, path))
        path = os.path.realpath(path)
        if path.startswith(root + os.sep):
            os.write(out, f"{kind} {path}\n".encode())

    sys.addaudithook(note)


def _run_the_one_we_hide() -> None:
    """Execute the sitecustomize that would have been found without us."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = [p for p in sys.path if os.path.abspath(p) != here]
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is not None:
        spec.loader.exec_module(module_from_spec(spec))


if "BOOK_WATCH_LOG" in os.environ:
    _watch(os.environ["BOOK_WATCH_ROOT"], os.environ["BOOK_WATCH_LOG"])
_run_the_one_we_hide()
