"""What other extensions leave behind is put right."""

from types import SimpleNamespace

import pytest
from book_repairs import keep_first_id, make_static_folder
from docutils import nodes


def test_the_first_keeps_its_id_and_the_others_lose_only_that():
    page = nodes.section(ids=["page"])
    first = nodes.section(ids=["exercise-content"])
    second = nodes.section(ids=["exercise-content", "own"])
    inner = nodes.section(ids=["page"])
    page += [first, second]
    second += inner
    document = nodes.Element("", page)
    keep_first_id(None, document, "page")
    found = [node["ids"] for node in (page, first, second, inner)]
    assert found == [["page"], ["exercise-content"], ["own"], []]


@pytest.mark.parametrize("before", ["nothing", "a file", "a folder"])
def test_the_static_folder_is_a_folder(tmp_path, before):
    static = tmp_path / "html" / "_static"
    if before != "nothing":
        static.parent.mkdir()
    if before == "a file":
        static.write_text("<svg/>")
    if before == "a folder":
        static.mkdir()
        (static / "kept.css").write_text("")
    builder = SimpleNamespace(format="html")
    make_static_folder(SimpleNamespace(builder=builder, outdir=static.parent))
    assert static.is_dir()
    assert (static / "kept.css").exists() == (before == "a folder")


def test_builders_of_other_formats_get_no_static_folder(tmp_path):
    builder = SimpleNamespace(format="latex")
    make_static_folder(SimpleNamespace(builder=builder, outdir=tmp_path))
    assert list(tmp_path.iterdir()) == []
