"""What other extensions leave behind, put right.

Each repair says whose fault it mends, and can go when that is mended.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx


def keep_first_id(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take each id from all elements of a page but the first.

    sphinx-exercise and sphinx-proof give the body of every exercise,
    solution and proof the same id. Nothing links to these, and HTML allows
    an id only once.
    """
    seen: set[str] = set()
    for node in doctree.findall(nodes.Element):
        ids = [name for name in node.get("ids", ()) if name not in seen]
        seen.update(ids)
        if ids != node.get("ids", ids):
            node["ids"] = ids


def make_static_folder(app: Sphinx) -> None:
    """Make the site's _static before anything is copied there.

    pydata-sphinx-theme copies the logo even when a build fails. If it fails
    before the folder exists, the logo becomes a file of that name, and no
    later build can write its style sheets.
    """
    if app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        if static.is_file():
            static.unlink()
        static.mkdir(parents=True, exist_ok=True)


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", make_static_folder)
    app.connect("doctree-resolved", keep_first_id)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
