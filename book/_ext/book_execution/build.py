"""What the extension does in one build, from its first event to its last."""

import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import ENV_PICKLE_FILENAME, Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

from .chapters import Chapter, ChapterError, read_chapter, read_chapters
from .execution import Progress, Run, run_chapters, uninterrupted
from .machine import available_cores
from .pages import Provenance, insert_provenance, table_view
from .results import Cache, read_kept

_LOGGER = logging.getLogger(__name__)
_MARK = "unfinished-or-with-warnings"


class Build:
    """State of one build; its methods answer Sphinx's events in order."""

    def __init__(self) -> None:
        self._chapters: dict[str, Chapter] = {}
        self._provenance: dict[str, Provenance] = {}  # of kept outputs
        self._failures: dict[str, str] = {}  # docname -> readable

    def begin(self, app: Sphinx, config: Config) -> None:
        """Forget all pages if the last build did not end without warnings.

        Sphinx warns about a page only when it reads the page. Without this,
        a build with warnings would turn green when it is run again.
        """
        mark = Path(app.doctreedir, _MARK)
        if mark.exists():
            Path(app.doctreedir, ENV_PICKLE_FILENAME).unlink(missing_ok=True)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def end(self, app: Sphinx, exception: Exception | None) -> None:
        """Name what is older than its code; clear the mark if all is well."""
        if exception is not None:
            return
        for docname, kept in self._provenance.items():
            if kept.changes and not kept.code_changed:
                _LOGGER.info(
                    "outputs older than the code they import: %s, recorded "
                    "%s at commit %s, changed since: %s; refresh with %s",
                    docname,
                    kept.record.date[:10],
                    kept.record.commit,
                    ", ".join(kept.changes),
                    self._chapters[docname].refresh_command,
                )
        if app._warncount == 0:
            Path(app.doctreedir, _MARK).unlink(missing_ok=True)

    def prepare(
        self, app: Sphinx, env: BuildEnvironment, *outdated: set[str]
    ) -> list[str]:
        """Fill the cache; return the pages whose outputs have changed.

        Raises: ChapterError if a chapter failed, after all others ran.
        """
        chapters = read_chapters(app)
        self._chapters = {c.docname: c for c in chapters}
        cache = Cache(env.mystnb_config.execution_cache_path)
        _refuse_twins(chapters, cache)
        uninterrupted(self._fill(cache, quiet=app.quiet))
        if self._failures:
            parts = [
                f"---- {docname} failed ----\n{text.strip()}\n"
                for docname, text in sorted(self._failures.items())
            ]
            # Not logged: with -W Sphinx would raise on the first line.
            print("", *parts, sep="\n", file=sys.stderr)
            raise ChapterError(
                f"{len(parts)} of {len(chapters)} chapters failed: "
                f"{', '.join(sorted(self._failures))}. "
                "The results of the others are kept."
            )
        for docname, kept in self._provenance.items():
            if kept.code_changed:
                _LOGGER.warning(
                    "the code changed after its outputs were recorded, so "
                    "the page shows none; refresh them with %s",
                    self._chapters[docname].refresh_command,
                    location=docname,
                    type="book",
                    subtype="execution",
                )
        records = {c.docname: cache.record(c) for c in chapters}
        env.book_execution_records = {
            docname: record for docname, record in records.items() if record
        }
        before = getattr(env, "book_execution_states", {})
        env.book_execution_states = {
            docname: (record, self._provenance.get(docname))
            for docname, record in records.items()
        }
        return [
            docname
            for docname, state in env.book_execution_states.items()
            if docname in before and before[docname] != state
        ]

    def refuse_late_edit(
        self, app: Sphinx, docname: str, source: list[str]
    ) -> None:
        """Stop if cells changed after `prepare`: MyST-NB would execute them.

        Raises: ChapterError, with the advice to build again.
        """
        if docname in self._chapters:
            then, now = self._chapters[docname], read_chapter(app, docname)
            if now is None or now.code != then.code:
                raise ChapterError(
                    f"{docname} was edited during the build; build again"
                )

    def add_provenance(self, app: Sphinx, doctree: nodes.document) -> None:
        """Say on the page of a kept chapter where its outputs come from."""
        docname = app.env.docname
        if docname in self._provenance:
            insert_provenance(
                doctree,
                self._provenance[docname],
                self._chapters[docname].refresh_command,
            )

    def update_tables(self, app: Sphinx, env: BuildEnvironment) -> list[str]:
        """Return the pages with a table of executions, if it has changed."""
        view = table_view(env)
        if view == getattr(env, "book_execution_view", None):
            return []
        env.book_execution_view = view
        return [
            docname
            for docname, metadata in env.metadata.items()
            if "has-execution-table" in metadata
        ]

    async def _fill(self, cache: Cache, *, quiet: bool) -> None:
        """Put into the cache what each chapter shows, executing if needed."""
        waiting = []
        unique = {cache.key(c.notebook): c for c in self._chapters.values()}
        for chapter in unique.values():
            if not chapter.has_code:
                cache.put(chapter, chapter.notebook, None)  # nothing to run
            elif chapter.is_kept:
                self._prime(chapter, cache)
            elif not cache.is_fresh(chapter):
                found = cache.find(chapter)
                if found is None:
                    waiting.append(chapter)
                else:
                    notebook, record = found
                    notebook = chapter.with_outputs_of(notebook)
                    cache.put(chapter, notebook, record)
        if not waiting:
            return

        def change(run: Run) -> None:
            progress.change(run)
            if run.failure:
                self._failures[run.chapter.docname] = run.failure
            elif run.record is not None:
                cache.put(run.chapter, run.notebook, run.record)

        at_once = min(available_cores(), len(waiting))
        _LOGGER.info(
            "\nexecuting %d chapters, %d at a time", len(waiting), at_once
        )
        async with Progress(None if quiet else sys.stdout) as progress:
            await run_chapters(
                waiting,
                at_once=at_once,
                preset="cpu",
                seconds=cache.seconds(),
                on_change=change,
            )

    def _prime(self, chapter: Chapter, cache: Cache) -> None:
        """Put the outputs kept in git into the cache, if they still fit."""
        kept = read_kept(chapter)
        if kept is None:
            self._failures[chapter.docname] = (
                f"It runs on {chapter.runs_on}, and no outputs of it are "
                f"kept in git; make them with {chapter.refresh_command}"
            )
            return
        notebook, record = kept
        code_changed = record.inputs.cells != chapter.inputs.cells
        self._provenance[chapter.docname] = Provenance(
            record=record,
            changes=chapter.inputs.changes_since(record.inputs),
            code_changed=code_changed,
        )
        if code_changed:
            cache.put(chapter, chapter.notebook, None)
        elif not cache.holds(chapter, record):
            notebook = chapter.with_outputs_of(notebook)
            cache.put(chapter, notebook, record, is_kept=True)


def _refuse_twins(chapters: list[Chapter], cache: Cache) -> None:
    """Raise ChapterError if MyST-NB could not tell two chapters apart.

    It looks chapters up by their cells, so equal cells get equal outputs,
    which is wrong if they read different files.
    """
    seen: dict[str, Chapter] = {}
    for chapter in chapters:
        twin = seen.setdefault(cache.key(chapter.notebook), chapter)
        if twin.has_code and (
            twin.inputs != chapter.inputs or twin.is_kept != chapter.is_kept
        ):
            raise ChapterError(
                f"{twin.docname} and {chapter.docname} have equal code cells "
                "but read different files; make one cell differ"
            )
