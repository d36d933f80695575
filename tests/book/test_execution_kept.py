"""Outputs kept in git are shown, never passed off as newer than they are."""

import json
import subprocess

import nbformat
import pytest
from book_execution import __main__ as command
from small_book import SmallBook

pytestmark = pytest.mark.slow
STRICT = ("-W", "--keep-going")
KEPT = "book/_executed/part/big.ipynb"
MAKE_GPU = "`make gpu`, or without a GPU `make gpu PRESET=cpu`"


def gpu_book(folder) -> SmallBook:
    """A book with one chapter, `big`, that runs on a GPU."""
    book = SmallBook(folder)
    book.write("src/toy.py", "VALUE = 'toy 1'\n")
    book.chapter(
        "big",
        "import toy\nprint('made by', toy.VALUE, os.environ['BOOK_PRESET'])",
        front_matter="book: {runs-on: gpu}",
    )
    return book


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    """The book, committed, and its first refresh, with the CPU preset."""
    book = gpu_book(tmp_path_factory.mktemp("kept"))
    git = ["git", "-C", str(book.root), "-c", "user.name=a", "-c"]
    git += ["user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "Start"], check=True)
    return book, book.refresh("--preset", "cpu")


@pytest.fixture
def book(refreshed):
    """The book as after its refresh, whatever a test has edited."""
    book, _ = refreshed
    chapter = book.path("book/part/big.md").read_text()
    module = book.path("src/toy.py").read_text()
    kept = book.path(KEPT).read_text()
    yield book
    book.write("book/part/big.md", chapter)
    book.write("src/toy.py", module)
    book.write(KEPT, kept)


def commit_of(book: SmallBook) -> str:
    head = ["git", "-C", str(book.root), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(
        head, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_refresh_writes_a_valid_notebook_with_its_record(refreshed):
    book, done = refreshed
    assert done.status == 0, done.output
    assert done.executed == ["big"]
    notebook = nbformat.read(book.path(KEPT), as_version=4)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == ["cell-0", "cell-1"]
    assert "toy 1 cpu" in notebook.cells[1].outputs[0].text
    record = notebook.metadata.book
    assert record.preset == "cpu"
    assert record.commit == commit_of(book)
    assert record.seconds > 0
    assert record.date.endswith("+00:00")
    assert " cores, " in record.hardware
    assert set(record.versions) >= {"python", "torch", "numpy", "matplotlib"}
    assert set(record.inputs.modules) == {"src/toy.py"}
    assert len(record.inputs.cells) == len(record.fingerprint) == 64


def test_a_second_refresh_finds_nothing_to_do(book):
    done = book.refresh("--preset", "cpu")
    assert done.status == 0
    assert done.executed == []
    assert "as new as their code" in done.output


def test_equal_outputs_give_equal_files(book):
    def without_times() -> dict:
        kept = json.loads(book.path(KEPT).read_text())
        del kept["metadata"]["book"]["date"]
        del kept["metadata"]["book"]["seconds"]
        return kept

    before = without_times()
    assert book.refresh("--preset", "cpu", "--all").executed == ["big"]
    assert without_times() == before
    assert list(book.path(KEPT).parent.iterdir()) == [book.path(KEPT)]


def test_a_build_shows_kept_outputs_and_executes_nothing(book):
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == []
    page = book.page("part/big")
    assert "made by toy 1 cpu" in page
    assert "The outputs on this page were recorded on 20" in page
    assert f"(cpu preset), in {seconds_of(book)} seconds" in page
    assert f"at commit {commit_of(book)}." in page
    assert "older than" not in page + built.output
    assert "Chapter big" in book.page("built")
    again = book.build(*STRICT)
    assert "no targets are out of date" in again.output


def seconds_of(book: SmallBook) -> str:
    kept = json.loads(book.path(KEPT).read_text())
    return f"{kept['metadata']['book']['seconds']:.1f}"


def test_a_changed_module_is_told_and_the_build_stays_green(book):
    book.build(*STRICT)
    book.write("src/toy.py", "VALUE = 'toy 2'\n")
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == []
    page = book.page("part/big")
    assert "Outputs older than the code" in page
    assert "Changed since: src/toy.py." in page
    assert f"at commit {commit_of(book)}" in page
    assert " cores, " in page
    assert "made by toy 1 cpu" in page
    again = book.build(*STRICT)
    for output in (built.output, again.output):
        assert "older than the code they import: book/part/big" in output
        assert "changed since: src/toy.py" in output
        assert MAKE_GPU in output
    assert book.refresh("--preset", "cpu").executed == ["big"]
    built = book.build(*STRICT)
    assert "older than" not in book.page("part/big") + built.output
    assert "made by toy 2 cpu" in book.page("part/big")


def test_a_changed_cell_fails_the_strict_build_each_time(book):
    book.build(*STRICT)
    book.replace("book/part/big.md", "'made by'", "'built by'")
    for _ in range(2):
        built = book.build(*STRICT)
        assert built.status == 1
        assert built.executed == []
        assert "book/part/big" in built.output
        assert f"refresh them with {MAKE_GPU}" in built.output
    page = book.page("part/big")
    assert "Outputs missing" in page
    assert "toy 1 cpu" not in page
    assert book.build().status == 0
    assert book.refresh("--preset", "cpu").executed == ["big"]
    assert book.build(*STRICT).status == 0
    assert "built by toy 1 cpu" in book.page("part/big")


def test_a_changed_caption_changes_no_output(book):
    book.replace("book/part/big.md", ":tags: []", ":tags: [hide-input]")
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == []
    assert "made by toy 1 cpu" in book.page("part/big")
    assert "older than" not in book.page("part/big")


def test_without_kept_outputs_the_build_fails(tmp_path):
    book = gpu_book(tmp_path)
    for _ in range(2):
        built = book.build()
        assert built.status != 0
        assert built.executed == []
        assert "---- book/part/big failed ----" in built.output
        assert f"make them with {MAKE_GPU}" in built.output


def test_a_notebook_that_refresh_did_not_write_is_refused(book):
    kept = json.loads(book.path(KEPT).read_text())
    del kept["metadata"]["book"]
    book.write(KEPT, json.dumps(kept))
    built = book.build()
    assert built.status != 0
    assert "big.ipynb must be written by `make gpu`" in built.output


def test_refresh_on_a_gpu_needs_a_gpu(book, monkeypatch):
    monkeypatch.setattr(command, "describe_gpu", lambda: "")
    done = book.refresh("book/part/big.md")
    assert done.status == 2
    assert "preset must be cpu where torch finds no GPU" in done.output
    assert done.executed == []


def test_refresh_on_a_gpu_replaces_what_a_cpu_made(book, monkeypatch):
    for module in ("__main__", "machine"):
        monkeypatch.setattr(
            f"book_execution.{module}.describe_gpu", lambda: "Fast, 80 GiB"
        )
    assert book.refresh("--preset", "gpu").executed == ["big"]
    record = json.loads(book.path(KEPT).read_text())["metadata"]["book"]
    assert record["preset"] == "gpu"
    assert record["hardware"] == "Fast, 80 GiB"
    assert book.refresh("--preset", "gpu").executed == []
    assert book.refresh("--preset", "cpu").executed == []


def test_refresh_names_what_it_can_refresh(book):
    done = book.refresh("--preset", "cpu", "book/part/unknown")
    assert done.status == 2
    assert "(book/part/big), got book/part/unknown" in done.output


def test_a_failing_refresh_leaves_the_kept_notebook(book):
    before = book.path(KEPT).read_text()
    book.replace("book/part/big.md", "print('made", "1 / 0, print('made")
    done = book.refresh("--preset", "cpu")
    assert done.status == 1
    assert "ZeroDivisionError" in done.output
    assert book.path(KEPT).read_text() == before


def test_a_network_chapter_runs_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.delenv("BOOK_NETWORK", raising=False)
    book = SmallBook(tmp_path)
    book.chapter(
        "online",
        "print('the', os.environ.get('ANSWER'))",
        front_matter="book: {runs-on: network}",
    )
    monkeypatch.setenv("ANSWER", "kept answer")
    built = book.build()
    assert built.status != 0
    assert "`BOOK_NETWORK=1 make gpu PRESET=cpu`" in built.output
    done = book.refresh("--preset", "cpu")
    assert "left out: book/part/online, set BOOK_NETWORK=1" in done.output
    assert done.executed == []

    monkeypatch.setenv("BOOK_NETWORK", "1")
    assert book.refresh("--preset", "cpu").executed == ["online"]
    monkeypatch.delenv("BOOK_NETWORK")
    assert_shows_kept_answer(book)

    monkeypatch.setenv("BOOK_NETWORK", "1")
    monkeypatch.setenv("ANSWER", "fresh answer")
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == ["online"]
    assert "the fresh answer" in book.page("part/online")
    assert "were recorded on" not in book.page("part/online")
    assert book.build(*STRICT).executed == []

    monkeypatch.delenv("BOOK_NETWORK")
    assert_shows_kept_answer(book)


def assert_shows_kept_answer(book: SmallBook) -> None:
    built = book.build(*STRICT)
    assert built.status == 0, built.output
    assert built.executed == []
    assert "the kept answer" in book.page("part/online")
    assert "were recorded on" in book.page("part/online")
