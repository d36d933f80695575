"""A build executes what changed, all of it, at once, and nothing else."""

import asyncio
import io
import os
import signal
import sqlite3
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from book_execution import execution, fingerprint
from book_execution.chapters import Chapter
from book_execution.execution import Progress, Run, run_chapters
from nbformat.v4 import new_notebook
from small_book import EXTENSIONS, SmallBook

pytestmark = pytest.mark.slow
STRICT = ("-W", "--keep-going")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A book and its first build: `one` and `two` import, `three` reads."""
    book = SmallBook(tmp_path_factory.mktemp("fresh"))
    book.write("src/toy/__init__.py", "")
    book.write("src/toy/direct.py", "VALUE = 'direct 1'\n")
    book.write("src/toy/deep.py", "VALUE = 'deep 1'\n")
    book.write("src/toy/unused.py", "VALUE = 'unused 1'\n")
    book.write("src/toy/pack/__init__.py", "")
    book.write("src/toy/pack/inner.py", "from ..deep import VALUE\n")
    book.write("data/numbers.txt", "number 1")
    book.chapter("one", "import toy.direct as d\nprint(d.VALUE)")
    book.chapter("two", "from toy.pack import inner\nprint(inner.VALUE)")
    book.chapter("three", "print(open('../../data/numbers.txt').read())")
    book.write("book/part/words.md", "# Words only\n\nSome prose.\n")
    return book, book.build(*STRICT)


@pytest.fixture
def book(first):
    """The same book, with all that was edited so far built."""
    book, _ = first
    book.build(*STRICT)
    return book


def test_the_first_build_executes_each_chapter_once(first):
    book, built = first
    assert built.status == 0, built.output
    assert sorted(built.executed) == ["one", "three", "two"]
    for name, shown in [("one", "direct"), ("two", "deep")]:
        assert shown in book.page(f"part/{name}")


def test_the_notebooks_show_nothing_of_the_watch(first):
    book, _ = first
    entries = book.path("_build/.jupyter_cache/executed")
    executed = list(entries.glob("*/base.ipynb"))
    assert len(executed) == 3
    for path in executed:
        cells = nbformat.read(path, as_version=4).cells
        assert [cell.execution_count for cell in cells] == [1, 2]
        assert [len(cell.outputs) for cell in cells] == [0, 1]


def test_without_a_change_nothing_is_executed_or_read(book):
    built = book.build(*STRICT)
    assert built.status == 0
    assert built.executed == []
    assert "no targets are out of date" in built.output


def test_an_edit_of_prose_executes_nothing(book):
    book.replace("book/part/one.md", "Some prose.", "Some prose, better.")
    built = book.build(*STRICT)
    assert built.executed == []
    assert "prose, better" in book.page("part/one")


def test_an_edit_of_a_caption_executes_nothing(book):
    book.replace("book/part/one.md", ":tags: []", ":tags: [hide-input]")
    built = book.build(*STRICT)
    assert built.executed == []
    assert built.status == 0, built.output
    assert "direct" in book.page("part/one")


def test_an_edit_of_a_cell_executes_its_chapter(book):
    book.replace("book/part/one.md", "print(d.", "print('now', d.")
    assert book.build(*STRICT).executed == ["one"]
    assert "now direct" in book.page("part/one")


@pytest.mark.parametrize(
    ("module", "readers"),
    [
        ("direct", ["one"]),
        ("deep", ["two"]),
        ("pack/inner", ["two"]),
        ("pack/__init__", ["two"]),
        ("__init__", ["one", "two"]),
        ("unused", []),
    ],
)
def test_an_edit_of_a_module_executes_and_reads_who_reaches_it(
    book, module, readers
):
    with book.path(f"src/toy/{module}.py").open("a") as source:
        source.write("VALUE = 'edited'\n")
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert sorted(built.executed) == readers
    assert f"0 added, {len(readers)} changed, 0 removed" in built.output
    if module in ("direct", "deep"):
        assert "edited" in book.page(f"part/{readers[0]}")


def test_an_edit_of_data_executes_who_reads_it(book):
    book.write("data/numbers.txt", "number 2")
    assert book.build(*STRICT).executed == ["three"]
    assert "number 2" in book.page("part/three")


def test_another_version_executes_all(book, monkeypatch):
    real = fingerprint.version
    monkeypatch.setattr(
        fingerprint, "version", lambda n: "9.9" if n == "torch" else real(n)
    )
    assert sorted(book.build(*STRICT).executed) == ["one", "three", "two"]


def test_the_table_tells_when_and_where_each_chapter_ran(book):
    page = book.page("built")
    places = [page.index(f"Chapter {n} ") for n in ("one", "three", "two")]
    assert places == sorted(places)
    assert f"Python {sys.version.split()[0]}, torch" in page
    assert page.count(f"{execution.available_cores()} cores") == 4


def test_the_table_shows_a_new_title_without_executing(book):
    book.replace("book/part/two.md", "# Chapter two", "# Second chapter")
    assert book.build(*STRICT).executed == []
    assert "Second chapter" in book.page("built")


def test_a_broken_entry_of_the_cache_is_executed_again(book):
    entries = book.path("_build/.jupyter_cache/executed")
    for entry in entries.glob("*/base.ipynb"):
        if "number" in entry.read_text():
            entry.unlink()
    built = book.build(*STRICT)
    assert built.status == 0
    assert built.executed == ["three"]


def test_an_entry_of_another_version_is_executed_again(book):
    with sqlite3.connect(book.path("_build/.jupyter_cache/global.db")) as db:
        db.execute(
            "update nbcache set data = ? where uri = ?",
            ('{"record": {"when": "long ago"}}', "book/part/three"),
        )
    db.close()
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == ["three"]


def test_a_notebook_without_code_is_not_executed(tmp_path):
    book = SmallBook(tmp_path)
    book.chapter("one", "1")
    text = book.path("book/part/one.md").read_text()
    book.write("book/part/one.md", text.partition("```{code")[0])
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert "executing" not in built.output
    assert "Some prose." in book.page("part/one")
    assert "Executed (UTC)" not in book.page("built")


def test_without_execution_the_book_still_builds(tmp_path):
    book = SmallBook(tmp_path)
    book.chapter("one", "print('shown')")
    built = book.build("-D", "nb_execution_mode=off", *STRICT)
    assert built.status == 0, built.output
    assert built.executed == []


def test_chapters_that_cannot_be_told_apart_are_refused(tmp_path):
    book = SmallBook(tmp_path)
    book.write("data/a.txt", "a")
    book.chapter("same", "1")
    text = book.path("book/part/same.md").read_text()
    declared = text.replace(
        "\n---\n\n#", "\nbook: {reads: [data/*]}\n---\n\n#"
    )
    book.write("book/part/twin.md", declared)
    built = book.build()
    assert built.status != 0
    assert "book/part/same and book/part/twin have equal code" in built.output


@pytest.mark.parametrize(
    ("front_matter", "message"),
    [
        ("book: {runs-on: moon}", "runs-on must be cpu, gpu or network"),
        ("book: {run-on: gpu}", "must be runs-on or reads, got run-on"),
        ("book: {reads: data}", "reads must be a list, got data"),
        ("book: {reads: [data/*]}", r"reads must name files .* 'data/*'"),
        ("mystnb: {execution_mode: force}", "must be cache or off, got force"),
    ],
)
def test_wrong_front_matter_is_named(tmp_path, front_matter, message):
    book = SmallBook(tmp_path)
    book.chapter("one", "1", front_matter=front_matter)
    built = book.build()
    assert built.status != 0
    for part in ("book/part/one: ", *message.split(" .* ")):
        assert part in built.output


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A book in which one chapter works, and its first build."""
    book = SmallBook(tmp_path_factory.mktemp("failing"))
    book.write("data/by_python.txt", "1")
    book.write("data/by_child.txt", "1")
    book.write("src/toy/__init__.py", "")
    book.chapter("good", "print('good result')")
    book.chapter("raises", "print('before')\nsecret = 1 / 0")
    book.chapter(
        "slow",
        "import time\ntime.sleep(30)",
        front_matter="mystnb: {execution_timeout: 1}",
    )
    book.chapter(
        "reads",
        "import subprocess, sys\n"
        "print(open('../../data/' + 'by_' + 'python.txt').read())\n"
        "child = 'import toy; open(' + repr('../../data/by_' + 'child.txt')\n"
        "subprocess.run([sys.executable, '-c', child + ')'], check=True)",
    )
    book.chapter("dies", "os._exit(3)")
    return book, book.build("-W")


def test_a_failing_chapter_stops_the_build(failing):
    _, built = failing
    assert built.status != 0
    assert "4 of 5 chapters failed: book/part/dies, " in built.output


def test_the_report_shows_the_cell_and_the_error(failing):
    book, built = failing
    lines = book.path("book/part/raises.md").read_text().splitlines()
    line = lines.index("secret = 1 / 0") - 3
    assert "---- book/part/raises failed ----" in built.output
    assert f"In the cell at line {line}" in built.output
    assert "ZeroDivisionError: division by zero" in built.output
    assert "secret = 1 / 0" in built.output
    assert "\x1b" not in built.output


def test_a_chapter_obeys_its_time_limit(failing):
    _, built = failing
    limit = "timed out while it was being executed, after 1 seconds"
    assert limit in built.output


def test_a_kernel_that_dies_is_reported_with_its_cell(failing):
    _, built = failing
    report = built.output.partition("part/dies failed ----")[2]
    assert "Kernel died\nos._exit(3)" in report


def test_a_file_that_no_fingerprint_covers_is_named(failing):
    _, built = failing
    names = "data/by_child.txt, data/by_python.txt, src/toy/__init__.py"
    assert f"It read {names}, but" in built.output
    assert f"book:\n  reads: [{names}]" in built.output


def test_the_others_are_kept_and_a_second_build_fails_too(failing):
    book, _ = failing
    again = book.build()
    assert again.status != 0  # without -W too
    assert sorted(again.executed) == ["dies", "raises", "reads", "slow"]
    names = "data/by_child.txt, data/by_python.txt, src/toy/__init__.py"
    book.replace(
        "book/part/reads.md", "\n\n---", f"\nbook: {{reads: [{names}]}}\n---"
    )
    for name, code in [
        ("raises", "secret = 1 / 0"),
        ("slow", "time.sleep(30)"),
        ("dies", "os._exit(3)"),
    ]:
        book.replace(f"book/part/{name}.md", code, "print('mended')")
    mended = book.build(*STRICT)
    assert mended.status == 0, mended.output
    assert sorted(mended.executed) == ["dies", "raises", "reads", "slow"]
    assert "good result" in book.page("part/good")


def test_a_build_with_warnings_stays_red_when_run_again(tmp_path):
    book = SmallBook(tmp_path)
    book.write("book/part/words.md", "# Words\n\n[link](nowhere.md)\n")
    assert book.build(*STRICT).status == 1
    assert book.build(*STRICT).status == 1
    assert book.build().status == 0
    assert book.build(*STRICT).status == 1
    assert book.build("-W").status != 0
    assert book.build(*STRICT).status == 1
    book.write("book/part/words.md", "# Words\n")
    assert book.build(*STRICT).status == 0
    assert "no targets are out of date" in book.build(*STRICT).output


def test_a_cell_edited_during_the_build_is_not_executed_by_others(
    tmp_path, monkeypatch
):
    book = SmallBook(tmp_path)
    book.chapter("one", "print('early')")
    put = execution.new_record

    def edit_meanwhile(*args, **kwargs):
        book.replace("book/part/one.md", "'early'", "'late'")
        monkeypatch.setattr(execution, "new_record", put)
        return put(*args, **kwargs)

    monkeypatch.setattr(execution, "new_record", edit_meanwhile)
    built = book.build()
    assert built.status != 0
    assert "book/part/one was edited during the build" in built.output
    assert built.executed == ["one"]
    assert book.build().executed == ["one"]
    assert "late" in book.page("part/one")


def test_a_module_edited_while_it_is_used_counts_as_changed(tmp_path):
    book = SmallBook(tmp_path)
    book.write("src/toy.py", "VALUE = 1\n")
    book.chapter(
        "one",
        "import toy\n"
        "if toy.VALUE == 1:\n"
        "    open(toy.__file__, 'w').write('VALUE = 2')",
    )
    assert book.build().executed == ["one"]
    book.write("src/toy.py", "VALUE = 1\n")
    assert book.build().executed == ["one"]


def chapters_named(*names: str) -> list[Chapter]:
    """Make chapters that can be scheduled, but not executed."""
    chapters = [
        Chapter(name, None, None, new_notebook(), None, "cpu", ())
        for name in names
    ]
    for chapter in chapters:
        vars(chapter)["inputs"] = None  # as if collected
    return chapters


@pytest.fixture
def schedule(monkeypatch):
    """Record (docname, how many run) for each start, executing nothing."""
    started, n_running = [], 0

    async def sleep_only(run, variables, folder):
        nonlocal n_running
        n_running += 1
        started.append((run.chapter.docname, n_running, variables))
        await asyncio.sleep(0.01)
        n_running -= 1

    monkeypatch.setattr(execution, "_execute", sleep_only)
    monkeypatch.setattr(execution, "_record", lambda run, preset: None)
    monkeypatch.setattr(execution, "available_cores", lambda: 6)

    def run(*names: str, at_once: int, seconds: dict | None = None):
        work = run_chapters(
            chapters_named(*names),
            at_once=at_once,
            preset="cpu",
            seconds=seconds or {},
            on_change=lambda run: None,
        )
        asyncio.run(work)
        return started

    return run


def test_the_longest_chapter_starts_first_and_unknown_ones_before(schedule):
    seconds = {"short": 1.0, "long": 9.0, "middle": 5.0}
    started = schedule(
        "short", "long", "new", "middle", at_once=1, seconds=seconds
    )
    assert [s[0] for s in started] == ["new", "long", "middle", "short"]
    assert {s[1] for s in started} == {1}


def test_the_times_of_the_last_build_order_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("book_execution.build.available_cores", lambda: 1)
    book = SmallBook(tmp_path)
    book.write("src/toy.py", "")
    book.chapter("brief", "import toy")
    book.chapter("long", "import time, toy\ntime.sleep(2.5)")
    assert book.build().executed == ["brief", "long"]
    book.write("src/toy.py", "VALUE = 1")
    assert book.build().executed == ["long", "brief"]


def test_as_many_run_as_allowed_and_share_the_cores(schedule, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    started = schedule("a", "b", "c", "d", "e", at_once=3)
    assert max(s[1] for s in started) == 3
    variables = started[0][2]
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["MKL_NUM_THREADS"] == "5"


def test_chapters_really_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("book_execution.build.available_cores", lambda: 2)
    book = SmallBook(tmp_path)
    meet = (
        "import time\n"
        "from pathlib import Path\n"
        "log = Path(os.environ['SMALL_BOOK_RUNS'])\n"
        "while len(log.read_text().split()) < 2: time.sleep(0.05)"
    )
    for name in ("left", "right"):
        book.chapter(name, f"{meet}  # {name}")
    built = book.build()
    assert built.status == 0
    assert "executing 2 chapters, 2 at a time" in built.output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def say(stream: io.StringIO) -> str:
    async def work() -> None:
        async with Progress(stream) as progress:
            runs = [Run(c, None, None) for c in chapters_named("a", "b")]
            for run in runs:
                progress.change(run)
            for run in runs:
                run.ended = run.started + 1.25
                progress.change(run)

    asyncio.run(work())
    return stream.getvalue()


def test_progress_is_plain_lines_where_there_is_no_terminal():
    lines = say(io.StringIO()).splitlines()
    assert [line.split()[0] for line in lines] == 2 * ["running"] + 2 * [
        "executed"
    ]
    assert lines[-1] == "  executed     1.2 s  b"


def test_progress_is_drawn_over_in_a_terminal():
    said = say(Terminal())
    assert said.count("\x1b[2A\x1b[J") == 1  # both ran
    assert said.endswith("\x1b[1A\x1b[J  executed     1.2 s  b\n")


def is_alive(pid: int) -> bool:
    if not psutil.pid_exists(pid):
        return False
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(condition, *, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_ctrl_c_leaves_no_process_and_a_sound_cache(tmp_path):
    book = SmallBook(tmp_path)
    book.chapter("quick", "print('quick result')")
    sleep = (
        "import subprocess\n"
        "with open(os.environ['SMALL_BOOK_RUNS'] + '-pids', 'a') as pids:\n"
        "    if os.environ.get('SLEEP'):\n"
        "        child = subprocess.Popen(['sleep', '300'])\n"
        "        print(os.getpid(), child.pid, file=pids, flush=True)\n"
        "        child.wait()"
    )
    book.chapter("sleeper", sleep)
    pids = tmp_path / "runs-pids"
    finished = book.path("_build/.jupyter_cache/executed")
    build = subprocess.Popen(
        [sys.executable, "-m", "sphinx", "-b", "html", ".", "_build/html"],
        cwd=book.root,
        env=os.environ | book.variables | {"SLEEP": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A command started in the background ignores Ctrl-C, and hands
        # that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: pids.exists() and pids.read_text().strip())
    wait_for(lambda: len(list(finished.glob("*/base.ipynb"))) == 1)
    build.send_signal(signal.SIGINT)
    output, _ = build.communicate(timeout=90)
    assert build.returncode != 0
    assert "Interrupted!" in output
    assert "Traceback" not in output
    kernel, child = map(int, pids.read_text().split())
    wait_for(lambda: not is_alive(kernel) and not is_alive(child), seconds=1)
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == ["sleeper"]
    assert "quick result" in book.page("part/quick")


@pytest.mark.filterwarnings("ignore:::sphinx_")  # not ours
def test_jupyter_book_and_plain_sphinx_build_the_same(tmp_path):
    book = SmallBook(tmp_path)
    book.path("conf.py").unlink()
    book.write(
        "_config.yml",
        "title: Small\n"
        "only_build_toc_files: true\n"
        "execute: {execute_notebooks: cache}\n"
        "html: {use_issues_button: false, use_repository_button: false}\n"
        f"sphinx:\n  local_extensions: {{book_execution: '{EXTENSIONS}'}}\n",
    )
    book.write(
        "_toc.yml",
        "format: jb-book\nroot: book/index\n"
        "chapters: [{file: book/part/one}, {file: book/built}]\n",
    )
    book.write("book/index.md", "# Index\n")
    book.chapter("one", "print('the', 'result')")

    def jupyter_book(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", JUPYTER_BOOK, *arguments],
            cwd=book.root,
            env=os.environ | book.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    jupyter_book("build", ".", *STRICT)
    assert book.runs() == ["one"]
    assert "the result" in book.page("part/one")
    done = book.refresh("--preset", "cpu")
    assert (done.status, done.executed) == (0, []), done.output
    jupyter_book("config", "sphinx", ".")
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == []


JUPYTER_BOOK = "from jupyter_book.cli.main import main; main()"
