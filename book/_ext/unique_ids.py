"""No id twice on a page.

sphinx-exercise and sphinx-proof give the body of every exercise, solution
and proof one and the same id. Nothing links to these, and HTML allows an id
only once; so the first on the page keeps it, and the others go without.
"""

from docutils import nodes
from sphinx.application import Sphinx


def keep_first(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take each id from all elements of a page but the first."""
    seen: set[str] = set()
    for node in doctree.findall(nodes.Element):
        ids = [name for name in node.get("ids", ()) if name not in seen]
        seen.update(ids)
        if ids != node.get("ids", ids):
            node["ids"] = ids


def setup(app: Sphinx) -> dict:
    app.connect("doctree-resolved", keep_first)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
