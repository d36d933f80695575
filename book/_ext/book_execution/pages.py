"""What the reader sees of it: the table of executions and the notes."""

from dataclasses import dataclass

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

from .fingerprint import PACKAGES
from .machine import Record, describe_cpu, describe_versions

_HEADINGS = ("Chapter", "Seconds", "Executed (UTC)", "Hardware", "Versions")


@dataclass(frozen=True)
class Provenance:
    """Where kept outputs come from, and what changed since."""

    record: Record
    changes: list[str]  # modules, files and versions
    code_changed: bool  # a cell of the chapter itself


class ExecutionTableNode(nodes.General, nodes.Element):
    """Stands for the table until all pages, and so all titles, are read."""


class ExecutionTable(SphinxDirective):
    """Show when, where and how long each chapter was executed."""

    def run(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["has-execution-table"] = True
        return [ExecutionTableNode()]


def table_view(env: BuildEnvironment) -> dict:
    """Return all that the table shows, in the order of the contents."""
    records = getattr(env, "book_execution_records", {})
    return {
        "machine": describe_cpu(),
        "versions": _versions(describe_versions()),
        "rows": [
            (docname, env.titles[docname].astext(), records[docname])
            for docname in _in_order(env, env.config.root_doc)
            if docname in records
        ],
    }


def fill_tables(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the table in the place of each directive."""
    for node in list(doctree.findall(ExecutionTableNode)):
        view = app.env.book_execution_view
        machine = nodes.paragraph(
            "",
            f"This copy of the book was built on {view['machine']}, "
            f"with {view['versions']}.",
        )
        rows = [
            (
                _link(app, docname, target, title),
                f"{record.seconds:.1f}",
                record.date[:16].replace("T", " "),
                record.hardware,
                _versions(record.versions),
            )
            for target, title, record in view["rows"]
        ]
        table = [_table(_HEADINGS, rows)] if rows else []
        node.replace_self([machine, *table])


def insert_provenance(
    doctree: nodes.document, kept: Provenance, command: str
) -> None:
    """Say below the title where the outputs of the page come from.

    Quietly if they belong to the code as it is, as an admonition if not.
    """
    record = kept.record
    made = (
        f"recorded on {record.date[:10]} on {record.hardware} "
        f"({record.preset} preset), in {record.seconds:.1f} seconds, with "
        f"{_versions(record.versions)}, at commit {record.commit}"
    )
    if kept.code_changed:
        title = "Outputs missing"
        text = (
            "The code on this page changed after its outputs were "
            f"{made}. Record them again with {command}."
        )
    elif kept.changes:
        title = "Outputs older than the code"
        text = (
            f"The outputs on this page were {made}. Changed since: "
            f"{', '.join(kept.changes)}. So the numbers may differ from what "
            "the code gives today."
        )
    else:
        title, text = "", f"The outputs on this page were {made}."
    note = nodes.paragraph("", text)
    if title:
        note = nodes.admonition("", nodes.title("", title), note)
        note["classes"].append("warning")
    note["classes"].append("execution-record")
    for heading in doctree.findall(nodes.title):
        place = heading.parent.index(heading) + 1
        heading.parent.insert(place, note)
        return


def _in_order(env: BuildEnvironment, docname: str) -> list[str]:
    """Return docname and all pages below it, as in the table of contents."""
    below = env.toctree_includes.get(docname, [])
    return [docname, *(d for child in below for d in _in_order(env, child))]


def _versions(versions: dict[str, str]) -> str:
    shown = [("Python", "python"), *zip(PACKAGES, PACKAGES, strict=True)]
    return ", ".join(
        f"{label} {versions[name]}"
        for label, name in shown
        if name in versions
    )


def _link(
    app: Sphinx, docname: str, target: str, title: str
) -> nodes.reference:
    uri = app.builder.get_relative_uri(docname, target)
    return nodes.reference("", title, refuri=uri, internal=True)


def _table(
    headings: tuple[str, ...], rows: list[tuple[nodes.Node | str, ...]]
) -> nodes.table:
    group = nodes.tgroup("", cols=len(headings))
    group += [nodes.colspec("", colwidth=1) for _ in headings]
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", group, classes=["execution-table"])


def _row(cells: tuple[nodes.Node | str, ...]) -> nodes.row:
    row = nodes.row()
    for cell in cells:
        content = nodes.Text(cell) if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", content))
    return row
