"""Execute chapters side by side, and see what they read."""

import asyncio
import copy
import io
import os
import queue
import re
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.util import source_from_cache
from pathlib import Path
from time import monotonic
from typing import IO, Any

from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from .chapters import Chapter
from .fingerprint import Inputs, is_input
from .machine import Record, available_cores, new_record

_WATCH_FOLDER = Path(__file__).parent / "watch"
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",  # torch obeys it too
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has only one
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Run:
    """One chapter being executed, and after that, what came of it."""

    chapter: Chapter
    notebook: NotebookNode  # gets the outputs
    inputs: Inputs  # as they were before it started
    started: float = field(default_factory=monotonic)  # seconds
    ended: float | None = None  # seconds, None while it runs
    cell: int | None = None  # place of the cell that ran last
    failure: str = ""  # readable, empty if all went well
    record: Record | None = None  # None if it failed

    @property
    def state(self) -> str:
        if self.ended is None:
            return "running"
        return "failed" if self.failure else "executed"

    @property
    def seconds(self) -> float:
        return (self.ended or monotonic()) - self.started


async def run_chapters(
    chapters: Iterable[Chapter],
    *,
    at_once: int,
    preset: str,
    seconds: dict[str, float],
    on_change: Callable[[Run], None],
) -> None:
    """Execute chapters, the longest first, at most at_once at a time.

    The cores are divided among those that run at once. A failure of one
    does not stop the others.

    Args:
        preset: "cpu" or "gpu", told to the chapter as BOOK_PRESET.
        seconds: of earlier executions; a chapter without one goes first.
        on_change: called when a run has started and when it has ended.
    """
    waiting = sorted(
        chapters, key=lambda c: -seconds.get(c.docname, float("inf"))
    )
    threads = str(max(1, available_cores() // at_once))
    variables = {name: threads for name in _THREAD_VARIABLES}
    variables |= os.environ  # who sets the threads by hand has a reason
    variables["BOOK_PRESET"] = preset

    async def work() -> None:
        while waiting:
            chapter = waiting.pop(0)
            notebook = copy.deepcopy(chapter.notebook)
            run = Run(chapter, notebook, chapter.inputs)
            on_change(run)
            with tempfile.TemporaryDirectory() as folder:
                await _execute(run, variables, Path(folder))
            if not run.failure:
                run.record = _record(run, preset)
            on_change(run)

    await asyncio.gather(*(work() for _ in range(at_once)))


def uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread; Ctrl-C cancels it and waits for its end.

    Ctrl-C is raised in the main thread only. So no step of the coroutine,
    such as writing to the cache, is ever cut in the middle.
    """
    handle: queue.SimpleQueue = queue.SimpleQueue()

    async def cancellable() -> None:
        handle.put((asyncio.get_running_loop(), asyncio.current_task()))
        await work

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, cancellable())
        try:
            done.result()
        except KeyboardInterrupt:
            loop, task = handle.get()
            loop.call_soon_threadsafe(task.cancel)
            raise


async def _execute(run: Run, variables: dict[str, str], folder: Path) -> None:
    """Execute one chapter in a kernel of its own, and end that kernel.

    Args:
        folder: an empty one, for what is noted on the way.
    """
    chapter = run.chapter
    log = folder / "opened"
    search = [str(_WATCH_FOLDER), variables.get("PYTHONPATH")]
    variables = variables | {
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
        "BOOK_WATCH_ROOT": str(chapter.root),
        "BOOK_WATCH_LOG": str(log),
    }

    def remember(cell: NotebookNode, cell_index: int) -> None:
        run.cell = cell_index

    spec = chapter.notebook.metadata.get("kernelspec", {})
    kernel = AsyncKernelManager(kernel_name=spec.get("name", "python3"))
    client = NotebookClient(
        run.notebook,
        km=kernel,
        timeout=chapter.config.execution_timeout,
        allow_errors=chapter.config.execution_allow_errors,
        record_timing=False,
        on_cell_execute=remember,
    )
    with open(folder / "stderr", "wb") as stderr:
        try:
            await client.async_execute(
                cwd=str(chapter.path.parent), env=variables, stderr=stderr
            )
        except Exception as error:
            # nbclient reports a cancelled wait as a dead kernel.
            if asyncio.current_task().cancelling():
                raise asyncio.CancelledError from None
            run.failure = _describe(run, error, folder / "stderr")
        finally:
            run.ended = monotonic()
            await _end(kernel, client, kindly=not run.failure)
    if not run.failure:
        run.failure = _undeclared(run, opened_files(log, chapter.root))


async def _end(
    kernel: AsyncKernelManager, client: NotebookClient, *, kindly: bool
) -> None:
    """End a kernel; unkindly, with all the processes that it started."""
    if client.kc is not None:
        client.kc.stop_channels()
    if kernel.has_kernel:
        kindly = kindly and not asyncio.current_task().cancelling()
        if not kindly:
            await kernel.signal_kernel(_KILL)
        await kernel.shutdown_kernel(now=not kindly)


def _record(run: Run, preset: str) -> Record:
    chapter = run.chapter
    record = new_record(
        run.inputs, seconds=run.seconds, preset=preset, root=chapter.root
    )
    if chapter.inputs_now() != run.inputs:
        # Somebody saved a module meanwhile: nobody knows which one was read,
        # so no fingerprint may ever match.
        return replace(record, fingerprint="")
    return record


def _describe(run: Run, error: Exception, stderr: Path) -> str:
    text = _ANSI.sub("", str(error)).strip() or type(error).__name__
    if run.cell is not None:
        line = run.chapter.line_of(run.cell)
        text = f"In the cell at line {line}: {text}"
    if "Kernel died" in text:
        cell = run.notebook.cells[run.cell or 0].source
        said = stderr.read_text(errors="replace").strip()
        text = "\n".join([text, cell, *said.splitlines()[-20:]])
    return text


def opened_files(log: Path, root: Path) -> set[str]:
    """Return what a watched chapter read in the book, relative to root.

    Compiled modules stand for their sources. Files that the chapter wrote
    before it read them are left out.
    """
    read, written = set(), set()
    lines = log.read_text().splitlines() if log.exists() else []
    for line in lines:
        kind, _, name = line.partition(" ")
        path = Path(name)
        if path.suffix == ".pyc" and path.parent.name == "__pycache__":
            path = Path(source_from_cache(path))
        if kind == "w":
            written.add(path)
        elif path not in written and is_input(path, root):
            read.add(path.relative_to(root).as_posix())
    return read


def _undeclared(run: Run, opened: set[str]) -> str:
    missing = sorted(p for p in opened if not run.inputs.covers(p))
    if not missing:
        return ""
    return (
        f"It read {', '.join(missing)}, but a change there would not execute "
        "it again, since no import and no string in its code names it. "
        "Declare it in the front matter, relative to the root of the book:\n"
        f"book:\n  reads: [{', '.join(missing)}]"
    )


class Progress:
    """Say on a stream what runs: lines of text, in a terminal a live block.

    Use as a context manager around the asynchronous work. No stream means
    to say nothing.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream or io.StringIO()
        self._is_live = self._stream.isatty()
        self._running: list[Run] = []
        self._n_drawn = 0

    def change(self, run: Run) -> None:
        self._erase()
        if run.ended is None:
            self._running.append(run)
        else:
            self._running.remove(run)
        if run.ended is not None or not self._is_live:
            self._write(run)
        self._draw()

    async def __aenter__(self) -> "Progress":
        self._clock = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *error) -> None:
        self._clock.cancel()
        self._erase()

    async def _tick(self) -> None:
        while self._is_live:
            await asyncio.sleep(0.5)
            self._erase()
            self._draw()

    def _draw(self) -> None:
        if self._is_live:
            for run in self._running:
                self._write(run)
            self._n_drawn = len(self._running)
        self._stream.flush()

    def _erase(self) -> None:
        if self._n_drawn:  # cursor up, clear to the end of the screen
            self._stream.write(f"\x1b[{self._n_drawn}A\x1b[J")
        self._n_drawn = 0

    def _write(self, run: Run) -> None:
        self._stream.write(
            f"  {run.state:8} {run.seconds:7.1f} s  {run.chapter.docname}\n"
        )
