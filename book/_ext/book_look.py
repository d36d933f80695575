"""The look of the book: formulas, chapter map, and what the theme leaves over.

Kept to standard Sphinx, so that the book also builds without Jupyter Book.
"""

import html
import re
from pathlib import Path

import yaml
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util.math import get_node_equation_number

KATEX = "vendor/katex-0.19.1/katex.min"  # under book/_static


# Formulas ------------------------------------------------------------------


def _top_level_line_break(tex):
    r"""True if tex has a \\ outside of any environment and any braces."""
    depth = 0
    for match in re.finditer(r"\\begin\b|\\end\b|\\\\|\\.|[{}]", tex):
        token = match[0]
        if token in (r"\begin", "{"):
            depth += 1
        elif token in (r"\end", "}"):
            depth -= 1
        elif token == r"\\" and depth <= 0:
            return True
    return False


def display_tex(tex, *, whole_environment=False):
    """Return TeX that KaTeX sets as one display.

    Numbers are Sphinx's, because only those can be referred to; so an
    environment that would number its lines becomes its starred form.
    Paragraphs become lines, as in Sphinx's own renderer.

    >>> display_tex(r"a &= b \\ c &= d")
    '\\begin{aligned}a &= b \\\\ c &= d\\end{aligned}'
    >>> display_tex(r"\\begin{align}x\\end{align}", whole_environment=True)
    '\\begin{align*}x\\end{align*}'
    """
    if whole_environment:
        numbered = r"\\(begin|end)\{(equation|align|gather|alignat)\}"
        return re.sub(numbered, r"\\\1{\2*}", tex.strip())
    parts = [part.strip() for part in tex.split("\n\n") if part.strip()]
    joined = r" \\ ".join(parts)
    if _top_level_line_break(joined):
        return r"\begin{aligned}" + joined + r"\end{aligned}"
    return joined


def _visit_inline(self, node):
    tex = self.encode(node.astext())
    start = self.starttag(
        node, "span", "", CLASS="math notranslate nohighlight"
    )
    self.body.append(rf"{start}\({tex}\)</span>")
    raise nodes.SkipNode


def _visit_display(self, node):
    classes = "math notranslate nohighlight"
    self.body.append(self.starttag(node, "div", "", CLASS=classes))
    tex = display_tex(
        node.astext(), whole_environment=node.get("nowrap", False)
    )
    self.body.append(rf'<div class="formula">\[{self.encode(tex)}\]</div>')
    if node.get("number"):
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def _add_katex(app, pagename, templatename, context, doctree):
    if 'class="math ' in context.get("body", ""):
        # Before book.css (priority 900), which adjusts it.
        app.builder.add_css_file(f"{KATEX}.css", priority=600)
        app.builder.add_js_file(f"{KATEX}.js", priority=600, defer="defer")


# What the theme leaves over ------------------------------------------------


def _settings(app, config):
    config.html_math_renderer = "katex"
    config.nb_ipywidgets_js = {}  # scripts from other hosts; no widgets here


def _drop_thebe(app):
    """Silence sphinx-thebe, which Jupyter Book always loads.

    It names a script on another host, and defines a constant twice, which
    is an error in the browser's console. The book does not use it.
    """
    for listeners in app.events.listeners.values():
        for listener in list(listeners):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)


def _plain_lines(signature):
    """Write the parameters of a signature as lines, not as half a list."""
    text = re.sub(r"<dl[^>]*>", '<span class="sig-lines">', signature[0])
    text = re.sub(r"<dd[^>]*>", '<span class="sig-line">', text)
    return re.sub(r"</d[ld]>", "</span>", text)


def _tidy_assets(assets):
    """Load each file once, and none of sphinx-thebe's."""
    kept = {}
    for asset in assets:
        if "thebe" not in str(asset.filename):
            key = (asset.filename, asset.attributes.get("body"))
            kept.setdefault(key, asset)
    return list(kept.values())


def tidy_body(body):
    """Mend what keeps a page from readers, in what the extensions write."""
    # A name that hides the visible words from those who speak to the page.
    label = '<summary aria-label="Toggle hidden content">'
    body = body.replace(label, "<summary>")
    # A space that would be underlined.
    body = re.sub(r"(Solution to)(<a [^>]*>) ", r"\1 \2", body)
    body = re.sub(r'<dt class="sig.*?</dt>', _plain_lines, body, flags=re.S)
    # A list whose items have a role of their own is not a list to a screen
    # reader, and the role of the items is deprecated.
    body = re.sub(r' role="doc-biblio(entry|graphy)"', "", body)
    return body.replace('<div role="list" ', "<div ")


def _tidy_page(app, pagename, templatename, context, doctree):
    for kind in ("script_files", "css_files"):
        context[kind] = _tidy_assets(context.get(kind, []))
    if context.get("body"):
        context["body"] = tidy_body(context["body"])


# The map of chapters -------------------------------------------------------


class chapter_map(nodes.General, nodes.Element):
    """Stands for the map until all chapters have been read."""


class ChapterMap(Directive):
    """Draw the path through the book from `book/chapters.yml`."""

    def run(self):
        env = self.state.document.settings.env
        data = Path(env.srcdir, "book", "chapters.yml")
        env.note_dependency(str(data))
        node = chapter_map(parts=yaml.safe_load(data.read_text("utf-8")))
        return [node]


def _note_minutes(app, doctree):
    """Remember how long a chapter takes, as its own first box says.

    So the number is written once. `minutes:` in the front matter goes
    before it.
    """
    metadata = app.env.metadata[app.env.docname]
    box = next(iter(doctree.findall(nodes.admonition)), None)
    said = re.search(r"(\d+)\s+minutes", box.astext() if box else "")
    if said and "minutes" not in metadata:
        metadata["minutes"] = int(said[1])


def chapters_that_exist(env):
    """Return {docname: minutes or None} for the chapters of the book."""
    return {
        docname: env.metadata[docname].get("minutes")
        for docname in sorted(env.found_docs)
        if re.match(r"book/(nn|llm|beyond)/\d", docname)
    }


def map_html(parts, existing, uri):
    """Return the map as HTML.

    Args:
        parts: what `book/chapters.yml` holds.
        existing: {docname: minutes or None}, as chapters_that_exist gives.
        uri: function from a docname to the address that a link needs.
    """
    out = ['<div class="path-map">', _NEURON]
    number = 0
    for part in parts:
        out.append(f"<h3>{html.escape(part['part'])}</h3>")
        out.append(f'<ol start="{number + 1}">')
        for chapter in part["chapters"]:
            number += 1
            docname = f"book/{chapter['doc']}"
            title = html.escape(chapter["title"])
            gives = html.escape(chapter["gives"])
            ready = docname in existing
            if ready:
                title = f'<a href="{html.escape(uri(docname))}">{title}</a>'
            else:
                title += '<span class="visually-hidden"> (planned)</span>'
            if existing.get(docname):
                gives += f" ({existing[docname]}&nbsp;min)"
            out.append(
                f'<li class="{"ready" if ready else "planned"}">'
                f'<span class="path-dot" aria-hidden="true">{number}</span>'
                f'<span class="path-title">{title}</span>'
                f'<span class="path-gives">{gives}</span></li>'
            )
        out.append("</ol>")
        out.append(f'<p class="path-end">{html.escape(part["end"])}</p>')
    out.append(_TEXT)
    out.append("</div>")
    out.append(f'<p class="path-total">{_total(number, existing)}</p>')
    return "\n".join(out)


def _total(planned, existing):
    text = f"{len(existing)} of {planned} chapters are written"
    minutes = list(existing.values())
    if minutes and all(minutes):
        hours = sum(map(int, minutes)) / 60
        return f"{text}; to read them takes about {hours:.1f} hours."
    return f"{text}. Each one says at its start how many minutes it takes."


# Three inputs that meet in one neuron: the start of the path.
_NEURON = """\
<svg class="path-neuron" viewBox="0 0 64 60" aria-hidden="true">
<path d="M8 8 32 36M32 6v30M56 8 32 36M32 36v24"/>
<circle cx="8" cy="8" r="4"/><circle cx="32" cy="6" r="4"/>
<circle cx="56" cy="8" r="4"/><circle class="body" cx="32" cy="36" r="9"/>
</svg>"""

# What comes out at the end: the running example, token by token.
_TEXT = (
    '<p class="path-text"><span>Return</span> <span>the</span> '
    "<span>sum</span> <span>of</span> <span>the</span> "
    '<span class="next">elements</span></p>'
)


def _draw_maps(app, doctree, docname):
    for node in list(doctree.findall(chapter_map)):
        drawn = map_html(
            node["parts"],
            chapters_that_exist(app.env),
            lambda target: app.builder.get_relative_uri(docname, target),
        )
        node.replace_self(nodes.raw("", drawn, format="html"))


def _redraw_maps(app, env):
    """Write the landing page again when a chapter came, left or changed."""
    now = chapters_that_exist(env)
    before = getattr(env, "book_chapters", now)
    env.book_chapters = now
    return [] if now == before else [env.config.root_doc]


# Docstrings ----------------------------------------------------------------

_BLOCK = re.compile(
    r"(Shapes|Args|Attributes|Returns|Raises|Source|Units|Yields)"
    r":(?:\s+(.*))?$"
)


def _inline(text):
    """Protect plain text from being read as reStructuredText."""
    pieces = re.split(r"(``.+?``|`[^`]+`)", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = f"``{piece.strip('`')}``"
        else:
            piece = re.sub(r"([\\*|])", r"\\\1", piece)
            pieces[i] = re.sub(r"_(?=\W|$)", r"\\_", piece)
    return "".join(pieces)


def _shapes(text):
    """Set each shape, such as (B, T), as code."""
    return _inline(re.sub(r"\([^()]*\)", r"``\g<0>``", text))


def _entries(lines):
    """Group a block's lines: a deeper line continues the one above."""
    entries = []
    for line in lines:
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        elif line.strip():
            entries.append(line.strip())
    return entries


def _field(name, first, lines):
    """Return one block (Shapes, Args, ...) as lines of a field list."""
    indents = [len(s) - len(s.lstrip()) for s in lines if s.strip()]
    body = [s[min(indents, default=0) :] for s in lines]
    if name in ("Args", "Attributes"):
        kind = "param" if name == "Args" else "ivar"
        out = []
        for entry in _entries(body):
            thing, _, meaning = entry.partition(":")
            out.append(f":{kind} {thing}: {_inline(meaning.strip())}")
        return out
    if first is None and name == "Shapes":
        return [":Shapes:", *(f"    | {_shapes(e)}" for e in _entries(body))]
    text = " ".join([first or "", *(s.strip() for s in body)]).strip()
    return [f":{name}: {_shapes(text) if name == 'Shapes' else _inline(text)}"]


def docstring_to_rst(lines):
    """Return a docstring of the house style as reStructuredText lines.

    Blocks become field lists, indented formulas literal blocks; all else
    is plain text in which no character is special but the backtick.
    """
    lines = [line.rstrip() for line in lines]
    out = []
    i = 0
    while i < len(lines):
        line = lines[i]
        block = _BLOCK.match(line)
        j = i + 1
        if line.startswith(">>>"):
            while j < len(lines) and lines[j]:
                j += 1
            out += ["", *lines[i:j], ""]
        elif block:
            # It ends at the next line that is not indented.
            while j < len(lines) and (not lines[j] or lines[j][0] == " "):
                j += 1
            if out and not out[-1].startswith((":", " ")):
                out.append("")
            out += _field(block[1], block[2], lines[i + 1 : j])
        elif line.startswith("    ") and (not out or not out[-1]):
            while j < len(lines) and (not lines[j] or lines[j][0] == " "):
                j += 1
            out += ["", ".. code-block:: text", "", *lines[i:j], ""]
        elif re.match(r"[-*] ", line):
            out.append(line[:2] + _inline(line[2:]))
        else:
            out.append(_inline(line))
        i = j
    return out


def _docstring(app, what, name, obj, options, lines):
    lines[:] = docstring_to_rst(lines)


def setup(app):
    app.add_html_math_renderer(
        "katex", (_visit_inline, None), (_visit_display, None)
    )
    app.add_css_file("book.css", priority=900)
    app.add_js_file("book.js", priority=900, defer="defer")
    app.add_node(chapter_map)
    app.add_directive("chapter-map", ChapterMap)
    app.connect("config-inited", _settings)
    app.connect("builder-inited", _drop_thebe)
    app.connect("doctree-read", _note_minutes)
    app.connect("env-updated", _redraw_maps)
    app.connect("doctree-resolved", _draw_maps)
    app.connect("html-page-context", _add_katex)
    app.connect("html-page-context", _tidy_page, priority=950)
    # Before napoleon, which then finds nothing left to do.
    app.connect("autodoc-process-docstring", _docstring, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
