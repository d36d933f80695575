"""No id twice on a page, and the first keeps its own."""

from docutils import nodes
from unique_ids import keep_first


def test_the_first_keeps_its_id_and_the_others_lose_only_that():
    page = nodes.section(ids=["page"])
    first = nodes.section(ids=["exercise-content"])
    second = nodes.section(ids=["exercise-content", "own"])
    inner = nodes.section(ids=["page"])
    page += [first, second]
    second += inner
    document = nodes.Element("", page)
    keep_first(None, document, "page")
    found = [node["ids"] for node in (page, first, second, inner)]
    assert found == [["page"], ["exercise-content"], ["own"], []]
