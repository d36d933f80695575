"""Execute the chapters that need a GPU or the network, for git.

    python -m book_execution refresh --preset cpu book/llm/08_training

Run it in the root of the book. Without a chapter it takes each one whose
kept outputs are missing or older than its code, or were made on a CPU while
the preset is now gpu.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from .chapters import NETWORK_VARIABLE, Chapter, ChapterError, read_chapters
from .execution import Progress, Run, run_chapters, uninterrupted
from .machine import available_cores, describe_gpu
from .results import read_kept, write_kept


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if a chapter failed, 2 for misuse."""
    parser = argparse.ArgumentParser(
        prog="book_execution",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["refresh"])
    parser.add_argument("chapters", nargs="*", metavar="chapter")
    parser.add_argument("--preset", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--all", action="store_true", help="fresh ones too")
    options = parser.parse_intermixed_args(arguments)
    marked = {
        c.docname: c for c in _chapters_of(Path.cwd()) if c.runs_on != "cpu"
    }
    names = [name.removesuffix(".md") for name in options.chapters]
    for name in names:
        if name not in marked:
            parser.error(
                "chapter must be marked runs-on gpu or network "
                f"({', '.join(marked) or 'none is'}), got {name}"
            )
    chosen = [
        chapter
        for name, chapter in marked.items()
        if name in names
        or (not names and (options.all or _is_old(chapter, options.preset)))
    ]
    for chapter in [c for c in chosen if c.runs_on == "network"]:
        if not chapter.need_is_met:
            print(f"left out: {chapter.docname}, set {NETWORK_VARIABLE}=1")
            chosen.remove(chapter)
    if not chosen:
        print("All kept outputs are as new as their code.")
        return 0
    needs_gpu = any(c.runs_on == "gpu" for c in chosen)
    if options.preset == "gpu" and needs_gpu and not describe_gpu():
        parser.error("preset must be cpu where torch finds no GPU, got gpu")
    return _refresh(chosen, options.preset)


def _refresh(chapters: list[Chapter], preset: str) -> int:
    failures = []

    def change(run: Run) -> None:
        progress.change(run)
        if run.failure:
            failures.append(f"---- {run.chapter.docname} ----\n{run.failure}")
        elif run.record is not None:
            write_kept(run.chapter, run.notebook, run.record)

    async def work() -> None:
        async with progress:
            # One at a time on a GPU, so that each gets all of its memory.
            cores = 1 if preset == "gpu" else available_cores()
            await run_chapters(
                chapters,
                at_once=min(cores, len(chapters)),
                preset=preset,
                seconds=_kept_seconds(chapters),
                on_change=change,
            )

    progress = Progress(sys.stdout)
    uninterrupted(work())
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _is_old(chapter: Chapter, preset: str) -> bool:
    try:
        kept = read_kept(chapter)
    except ChapterError:  # not written by us
        return True
    if kept is None:
        return True
    _, record = kept
    return record.fingerprint != chapter.inputs.fingerprint or (
        chapter.runs_on == preset == "gpu" and record.preset == "cpu"
    )


def _kept_seconds(chapters: list[Chapter]) -> dict[str, float]:
    seconds = {}
    for chapter in chapters:
        if chapter.kept_path.exists():
            _, record = read_kept(chapter)
            seconds[chapter.docname] = record.seconds
    return seconds


def _chapters_of(root: Path) -> list[Chapter]:
    """Read the chapters as a build of the book would, but build nothing.

    The settings come from _config.yml, or else from conf.py.
    """
    config, confdir = {}, root
    if (root / "_config.yml").exists():
        from jupyter_book.config import get_final_config

        confdir = None
        config, _ = get_final_config(
            user_yaml=root / "_config.yml",
            cli_config={
                "external_toc_path": str(root / "_toc.yml"),
                "latex_individualpages": False,  # Jupyter Book insists
            },
            sourcedir=root,
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        patch_docutils(confdir),
        docutils_namespace(),
    ):
        app = Sphinx(
            srcdir=root,
            confdir=confdir,
            outdir=Path(folder, "html"),
            doctreedir=Path(folder, "doctrees"),
            buildername="dummy",
            confoverrides=config,
            status=None,
        )
        app.env.find_files(app.config, app.builder)
        return read_chapters(app)


if __name__ == "__main__":
    sys.exit(main())
