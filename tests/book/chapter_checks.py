"""What must hold for the source of a chapter, as functions over its text.

Each check takes a parsed page and returns the problems that it found, with
their lines and how to mend them. test_chapters.py runs them over the book;
test_chapter_checks.py shows for each one that it can fail.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from layout import ROOT, Problem

MAX_COLUMNS = 79
MAX_CELL_LINES = 25
MIN_EXERCISES = 3

FRAME = (
    "The idea",
    "The code",
    "Experiment",
    "Pitfalls",
    "Exercises",
    "Summary",
    "Further reading",
)
KERNELSPEC = {
    "display_name": "Python 3",
    "language": "python",
    "name": "python3",
}
BANNED = ("simply", "just", "obviously", "of course", "powerful")
INPUT_HIDDEN = {"remove-cell", "remove-input", "hide-cell", "hide-input"}
NOT_RUN = {"skip-execution", "raises-exception"}

# Directives whose body is prose with directives of its own. Of all others
# the body is code, data or nothing.
PROSE_DIRECTIVES = {
    *("admonition", "attention", "caution", "danger", "error", "hint"),
    *("important", "note", "seealso", "tip", "warning", "margin", "sidebar"),
    *("dropdown", "card", "grid", "grid-item", "grid-item-card", "tab-set"),
    *("tab-item", "exercise", "exercise-start", "solution", "figure"),
    *("solution-start", "glue:figure", "list-table", "table", "epigraph"),
    *("prf:theorem", "prf:proof", "prf:definition", "prf:lemma"),
    *("prf:corollary", "prf:proposition", "prf:example", "prf:remark"),
    *("prf:algorithm", "prf:property", "prf:observation", "div", "topic"),
    *("versionadded", "glossary", "container", "pull-quote", "highlights"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block: a directive, a code cell or a plain code block."""

    name: str  # "code-cell", "admonition", ...; of a plain block, ""
    argument: str
    options: dict
    body: tuple[str, ...]
    line: int  # of the opening fence, from 1
    body_line: int  # of the first line of the body

    @property
    def text(self) -> str:
        return "\n".join(self.body)

    @property
    def tags(self) -> set[str]:
        tags = self.options.get("tags") or []
        return {tags} if isinstance(tags, str) else set(tags)

    @property
    def is_executed(self) -> bool:
        return self.name == "code-cell" and not self.tags & NOT_RUN


@dataclass
class Page:
    """A MyST page, taken apart."""

    path: str
    text: str
    front_matter: dict
    blocks: list[Block] = field(default_factory=list)  # nested ones too
    headings: list[tuple[int, int, str]] = field(default_factory=list)
    prose: list[tuple[int, str]] = field(default_factory=list)

    def problem(self, line: int, message: str) -> Problem:
        return Problem(self.path, line, message)

    def named(self, *names: str) -> list[Block]:
        return [block for block in self.blocks if block.name in names]

    @property
    def cells(self) -> list[Block]:
        return self.named("code-cell")


_FENCE = re.compile(r"^\s*(`{3,}|~{3,}|:{3,})\s*(.*?)\s*$")
_DIRECTIVE = re.compile(r"^\{([^}]+)\}\s*(.*)$")


def parse(text: str, path: str = "page.md") -> Page:
    """Take a MyST page apart into front matter, headings, blocks and prose."""
    lines = text.splitlines()
    start, front_matter = _front_matter(lines)
    page = Page(path, text, front_matter)
    _parse_lines(page, lines[start:], start + 1)
    page.blocks.sort(key=lambda block: block.line)
    return page


def _front_matter(lines: list[str]) -> tuple[int, dict]:
    if not lines or lines[0].strip() != "---":
        return 0, {}
    for i, line in enumerate(lines[1:], 1):
        if line.strip() == "---":
            return i + 1, yaml.safe_load("\n".join(lines[1:i])) or {}
    return 0, {}


def _parse_lines(page: Page, lines: list[str], first: int) -> None:
    i = 0
    while i < len(lines):
        line, number = lines[i], first + i
        fence = _FENCE.match(line)
        if fence is None or (fence[1][0] == "`" and "`" in fence[2]):
            heading = re.match(r"^(#{1,6})\s+(.*?)\s*#*$", line)
            if heading:
                page.headings.append((number, len(heading[1]), heading[2]))
            page.prose.append((number, line))
            i += 1
            continue
        end = _closing(lines, i, fence[1])
        _parse_block(page, fence[2], lines[i + 1 : end], number)
        i = end + 1


def _closing(lines: list[str], start: int, fence: str) -> int:
    for i in range(start + 1, len(lines)):
        stripped = lines[i].strip()
        if stripped.startswith(fence) and not stripped.strip(fence[0]):
            return i
    return len(lines)


def _parse_block(page: Page, info: str, body: list[str], line: int) -> None:
    directive = _DIRECTIVE.match(info)
    name, argument = directive.groups() if directive else ("", info)
    skipped, options = _options(body) if directive else (0, {})
    body, body_line = body[skipped:], line + 1 + skipped
    while body and not body[0].strip():
        body, body_line = body[1:], body_line + 1
    while body and not body[-1].strip():
        body = body[:-1]
    page.blocks.append(
        Block(name, argument, options, tuple(body), line, body_line)
    )
    if name in PROSE_DIRECTIVES:
        if argument and name not in ("figure", "glue:figure"):
            page.prose.append((line, argument))
        _parse_lines(page, body, body_line)
    for caption in _captions(options):
        page.prose.append((line, caption))


def _options(body: list[str]) -> tuple[int, dict]:
    if body and body[0].strip() == "---":
        for i, line in enumerate(body[1:], 1):
            if line.strip() == "---":
                return i + 1, yaml.safe_load("\n".join(body[1:i])) or {}
    options = {}
    for i, line in enumerate(body):
        option = re.match(r"^\s*:([\w-]+):\s*(.*)$", line)
        if option is None:
            return i, options
        value = option[2]
        if option[1] == "tags" or (value[:1] in "\"'" and value):
            value = yaml.safe_load(value)
        options[option[1]] = value
    return len(body), options


def _captions(options: dict) -> Iterator[str]:
    settings = options.get("mystnb") or {}
    yield from (
        str(text)
        for text in (
            options.get("caption"),
            options.get("alt"),
            settings.get("figure", {}).get("caption"),
            settings.get("image", {}).get("alt"),
        )
        if text
    )


def read(path: Path) -> Page:
    """Parse a page of the book."""
    text = path.read_text(encoding="utf8")
    return parse(text, path.relative_to(ROOT).as_posix())


# Front matter


def check_front_matter(page: Page) -> list[Problem]:
    """A full kernelspec and jupytext header, without which caches miss."""
    problems = []
    kernelspec = page.front_matter.get("kernelspec")
    if kernelspec != KERNELSPEC:
        problems.append(
            page.problem(
                1,
                f"kernelspec must be {KERNELSPEC}, got {kernelspec}. "
                "Write it in full in the front matter",
            )
        )
    jupytext = page.front_matter.get("jupytext") or {}
    wanted = {"extension": ".md", "format_name": "myst"}
    got = jupytext.get("text_representation") or {}
    if {key: got.get(key) for key in wanted} != wanted:
        problems.append(
            page.problem(
                1,
                f"jupytext.text_representation must be {wanted}, got {got}. "
                "Write it in the front matter",
            )
        )
    return problems + _check_minutes(page)


def _check_minutes(page: Page) -> list[Problem]:
    def numbers(value: object) -> Iterator[object]:
        if isinstance(value, dict):
            for item in value.values():
                yield from numbers(item)
        else:
            yield value

    return [
        page.problem(
            1,
            f"{key} must be minutes between 0 and 300, got {value!r}. "
            "Say how long a reader needs",
        )
        for key, given in page.front_matter.items()
        if "minutes" in str(key)
        for value in numbers(given)
        if isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= 300
    ]


# The frame


def check_frame(page: Page) -> list[Problem]:
    """The parts of a chapter in their order; sections between are free."""
    problems = []
    titles = [heading for heading in page.headings if heading[1] == 1]
    if len(titles) != 1:
        problems.append(
            page.problem(1, f"must have one title (#), got {len(titles)}")
        )
    sections = [
        (line, _frame_name(title))
        for line, level, title in page.headings
        if level == 2
    ]
    first_section = sections[0][0] if sections else len(page.text)
    problems += _check_opening(page, first_section)
    names = [name for _, name in sections]
    last = 0
    for part in FRAME:
        lines = [line for line, name in sections if name == part]
        if not lines:
            problems.append(
                page.problem(1, f"has no section `## {part}`. Add it")
            )
            continue
        if len(lines) > 1 and part != "Experiment":
            problems.append(
                page.problem(lines[1], f"`## {part}` must come once")
            )
        if lines[0] < last:
            problems.append(
                page.problem(
                    lines[0],
                    f"`## {part}` comes too early: the order is "
                    + ", ".join(FRAME),
                )
            )
        last = max(last, lines[-1])
    if "Further reading" in names and names[-1] != "Further reading":
        problems.append(
            page.problem(
                sections[-1][0],
                "`## Further reading` must be the last section",
            )
        )
    return problems


def _frame_name(title: str) -> str:
    title = title.strip()
    return "Experiment" if re.match(r"Experiments?\b", title) else title


def _check_opening(page: Page, first_section: int) -> list[Problem]:
    problems = []
    question = [
        line
        for line, text in page.prose
        if text.startswith("**The question.**")
    ]
    if not question or question[0] > first_section:
        problems.append(
            page.problem(
                1,
                "must open with a paragraph that begins with "
                "**The question.**, before the first section",
            )
        )
    boxes = [
        block
        for block in page.named("admonition")
        if block.argument.strip() == "In this chapter"
    ]
    if not boxes or boxes[0].line > first_section:
        problems.append(
            page.problem(
                1,
                "must have an admonition `In this chapter` before the first "
                "section: what one needs, what one will be able to do",
            )
        )
    elif not boxes[0].text.strip():
        problems.append(
            page.problem(boxes[0].line, "`In this chapter` is empty")
        )
    elif question and question[0] > boxes[0].line:
        problems.append(
            page.problem(
                question[0], "the question comes before `In this chapter`"
            )
        )
    return problems


# Exercises


def code_of(cell: Block) -> ast.Module | None:
    """Parse a cell's code, without the lines that only IPython reads."""
    lines = [
        "" if line.lstrip().startswith(("%", "!")) else line
        for line in cell.body
    ]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return None


def _at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the cell runs: no bodies of functions."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(
            child,
            ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda,
        ):
            yield from _at_module_level(child)


def has_assertion(code: ast.Module) -> bool:
    """Say whether running the code checks something that it computed."""
    return any(
        isinstance(node, ast.Assert)
        and any(isinstance(part, ast.Name) for part in ast.walk(node.test))
        for node in _at_module_level(code)
    )


@dataclass(frozen=True)
class Solution:
    """A solution between its start and end."""

    label: str
    line: int
    folded: bool
    cells: list[Block]


def solutions_of(page: Page) -> list[Solution]:
    """Return the solutions of a page; one that is not gated has no cells."""
    found = []
    for start in page.named("solution", "solution-start"):
        cells = []
        if start.name == "solution-start":
            ends = [
                block.line
                for block in page.named("solution-end")
                if block.line > start.line
            ]
            end = ends[0] if ends else start.line
            cells = [c for c in page.cells if start.line < c.line < end]
        folded = "dropdown" in str(start.options.get("class", "")).split()
        found.append(
            Solution(start.argument.strip(), start.line, folded, cells)
        )
    return found


def check_exercises(page: Page) -> list[Problem]:
    """At least three, each with one folded solution that asserts."""
    problems = []
    exercises = page.named("exercise", "exercise-start")
    if len(exercises) < MIN_EXERCISES:
        problems.append(
            page.problem(
                1,
                f"must have at least {MIN_EXERCISES} exercises, "
                f"got {len(exercises)}",
            )
        )
    solutions = solutions_of(page)
    labels = [block.options.get("label") for block in exercises]
    for block, label in zip(exercises, labels, strict=True):
        if not label:
            problems.append(
                page.problem(block.line, "exercise has no :label:. Add one")
            )
            continue
        if labels.count(label) > 1:
            problems.append(
                page.problem(block.line, f"label {label} is taken twice")
            )
        own = [s for s in solutions if s.label == label]
        if len(own) != 1:
            problems.append(
                page.problem(
                    block.line,
                    f"exercise {label} must have one solution "
                    "({solution-start} " + f"{label}), got {len(own)}",
                )
            )
    for solution in solutions:
        problems += _check_solution(page, solution, labels)
    return problems


def _check_solution(
    page: Page, solution: Solution, labels: list[str | None]
) -> list[Problem]:
    problems = []
    label = solution.label
    if label not in labels:
        problems.append(
            page.problem(
                solution.line, f"solution {label!r} belongs to no exercise"
            )
        )
    if not solution.folded:
        problems.append(
            page.problem(
                solution.line,
                f"solution {label} is not folded. Add `:class: dropdown`",
            )
        )
    codes = [code_of(cell) for cell in solution.cells if cell.is_executed]
    if not any(code and has_assertion(code) for code in codes):
        problems.append(
            page.problem(
                solution.line,
                f"solution {label} asserts nothing. Put an executed cell "
                "between {solution-start} and {solution-end} whose "
                "`assert` is about something computed",
            )
        )
    return problems


def check_checker(page: Page) -> list[Problem]:
    """At least one exercise is checked by scratch.exercises."""
    imported = set()
    for cell in page.cells:
        for node in ast.walk(code_of(cell) or ast.Module([], [])):
            if isinstance(node, ast.ImportFrom) and (
                f"{node.module}.".startswith("scratch.exercises.")
            ):
                imported |= {a.asname or a.name for a in node.names}
    called = set()
    for solution in solutions_of(page):
        for cell in solution.cells:
            if not cell.is_executed:
                continue
            for node in ast.walk(code_of(cell) or ast.Module([], [])):
                if isinstance(node, ast.Call):
                    function = node.func
                    while isinstance(function, ast.Attribute):
                        function = function.value
                    if isinstance(function, ast.Name):
                        called.add(function.id)
    if imported & called:
        return []
    return [
        page.problem(
            1,
            "no solution calls a checker that is imported from "
            "scratch.exercises. Make one exercise an `implement it "
            "yourself` with a checker",
        )
    ]


# Figures


def check_figures(page: Page) -> list[Problem]:
    """At least one figure; each with a caption and a description."""
    problems = []
    count = 0
    for block in page.blocks:
        settings = block.options.get("mystnb") or {}
        if block.name == "code-cell" and "figure" in settings:
            count += 1
            caption = settings["figure"].get("caption")
            alt = settings.get("image", {}).get("alt")
            how = "mystnb: figure: caption", "mystnb: image: alt"
        elif block.name in ("figure", "glue:figure"):
            count += 1
            caption = block.text
            alt = block.options.get("alt")
            how = "a paragraph in the directive", ":alt:"
        elif block.name == "image":
            caption, alt = None, block.options.get("alt")
            how = "the figure directive instead of image", ":alt:"
        else:
            continue
        if not str(caption or "").strip():
            problems.append(
                page.problem(
                    block.line,
                    f"figure has no caption. Say its finding with {how[0]}",
                )
            )
        if len(str(alt or "").split()) < 3:
            problems.append(
                page.problem(
                    block.line,
                    "figure has no text that describes it. Say in words "
                    f"what one sees, with {how[1]}",
                )
            )
    for line, text in page.prose:
        if re.search(r"!\[[^\]]*\]\(", re.sub(r"`[^`]*`", "", text)):
            problems.append(
                page.problem(
                    line,
                    "image without a caption. Use the figure directive",
                )
            )
    if not count:
        problems.append(page.problem(1, "must have at least one figure"))
    return problems


# Code that the reader sees


def check_cell_length(page: Page) -> list[Problem]:
    """No cell is longer than a reader can take in."""
    return [
        page.problem(
            cell.line,
            f"cell shows {len(cell.body)} lines, at most {MAX_CELL_LINES}. "
            "Split it, or move the code into scratch",
        )
        for cell in page.cells
        if not cell.tags & INPUT_HIDDEN and len(cell.body) > MAX_CELL_LINES
    ]


def check_columns(page: Page) -> list[Problem]:
    """No line of shown code is wider than the column of text."""
    problems = []
    for block in page.blocks:
        if block.name not in ("code-cell", "code-block", "code", ""):
            continue
        if block.tags & {"remove-cell", "remove-input"}:
            continue
        for i, line in enumerate(block.body):
            if len(line) > MAX_COLUMNS:
                problems.append(
                    page.problem(
                        block.body_line + i,
                        f"code has {len(line)} columns, at most "
                        f"{MAX_COLUMNS}. Break the line",
                    )
                )
    return problems


def listed(source: str, pyobject: str) -> str | None:
    """Return what literalinclude would show of a module, or None.

    >>> listed("class A:\\n    def b(self): ...", "A.b")
    '    def b(self): ...'
    """
    scope: list[ast.stmt] = ast.parse(source).body
    found = None
    for name in pyobject.split("."):
        found = next(
            (n for n in scope if getattr(n, "name", None) == name), None
        )
        if found is None:
            return None
        scope = getattr(found, "body", [])
    decorators = getattr(found, "decorator_list", [])
    first = min([found.lineno, *(d.lineno for d in decorators)])
    return "\n".join(source.splitlines()[first - 1 : found.end_lineno])


def check_listings(page: Page, root: Path = ROOT) -> list[Problem]:
    """Listings show one named object of scratch, with caption and name."""
    problems = []
    for block in page.named("literalinclude"):
        for option in ("pyobject", "caption", "name"):
            if not block.options.get(option):
                problems.append(
                    page.problem(
                        block.line, f"literalinclude has no :{option}:. Add it"
                    )
                )
        if "lines" in block.options:
            problems.append(
                page.problem(
                    block.line,
                    "literalinclude must not use :lines:, which goes stale. "
                    "Use :pyobject:",
                )
            )
        problems += _check_listed(page, block, root)
    return problems


def _check_listed(page: Page, block: Block, root: Path) -> list[Problem]:
    file = (root / page.path).parent / block.argument
    if not file.is_file():
        return [page.problem(block.line, f"{block.argument} does not exist")]
    pyobject = block.options.get("pyobject")
    if not pyobject:
        return []
    code = listed(file.read_text(encoding="utf8"), pyobject)
    if code is None:
        return [
            page.problem(
                block.line, f"{block.argument} has no object {pyobject}"
            )
        ]
    dedent = int(block.options.get("dedent") or 0)
    widest = max(len(line) for line in code.splitlines()) - dedent
    if widest > MAX_COLUMNS:
        return [
            page.problem(
                block.line,
                f"listing of {pyobject} has {widest} columns, at most "
                f"{MAX_COLUMNS}",
            )
        ]
    return []


# The chapter and its module


def public_names(source: str) -> list[str]:
    """Return the names that a module defines for others.

    >>> public_names("import os\\nN = 1\\n_hidden = 2\\ndef f(): ...")
    ['N', 'f']
    """
    names = []
    for node in ast.parse(source).body:
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        ):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names += _targets(node)
    return [name for name in names if not name.startswith("_")]


def _targets(node: ast.AST) -> list[str]:
    """Return the names that a statement binds by itself."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        targets = [node.target]
    elif isinstance(node, ast.For | ast.AsyncFor):
        targets = [node.target]
    elif isinstance(node, ast.With | ast.AsyncWith):
        targets = [i.optional_vars for i in node.items if i.optional_vars]
    else:
        return []
    return [
        part.id
        for target in targets
        for part in ast.walk(target)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    ]


def check_public_names(page: Page, module: str, source: str) -> list[Problem]:
    """Each public name of the chapter's module appears in the chapter."""
    return [
        page.problem(
            1,
            f"`{name}` of scratch.{module.replace('/', '.')} does not "
            "appear. Show it, or make it private with a leading underscore",
        )
        for name in public_names(source)
        if not re.search(rf"\b{re.escape(name)}\b", page.text)
    ]


def check_no_redefinition(page: Page, public: set[str]) -> list[Problem]:
    """No cell gives a name of scratch another meaning.

    A function or class must not have a public name of any module of
    scratch; a variable must not have a name that the page has imported
    from it.
    """
    problems = []
    imported: set[str] = set()
    for cell in page.cells:
        code = code_of(cell)
        if code is None:
            continue
        for node in ast.walk(code):
            if isinstance(node, ast.ImportFrom) and (
                f"{node.module}.".startswith("scratch.")
            ):
                imported |= {a.asname or a.name for a in node.names}
    for cell in page.cells:
        code = code_of(cell)
        for node in _statements(code) if code else ():
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                again = {node.name} & (public | imported)
            else:
                again = set(_targets(node)) & imported
            problems += [
                page.problem(
                    cell.body_line + node.lineno - 1,
                    f"`{name}` is a name of scratch. Give the cell's own "
                    "version another name",
                )
                for name in sorted(again)
            ]
    return problems


def _statements(code: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs in the cell, with the definitions themselves."""
    for node in _at_module_level(code):
        yield node
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield child


# Prose


_NOT_PROSE = re.compile(
    r"""
      ^[ ]*%[^\n]*$                             # a comment
    | \{[\w:.+-]+\}(?P<role>`+).*?(?P=role)    # a role
    | (?P<code>`+).*?(?P=code)                # a code span
    | \\begin\{(?P<env>\w+\*?)\}.*?\\end\{(?P=env)\}
    | (?<!\\)\$\$.*?(?<!\\)\$\$               # mathematics
    | (?<!\\)\$.+?(?<!\\)\$
    | (?<=\])\([^)]*\)                        # the target of a link
    | <[^>\n]*>                               # HTML, a bare link
    | ^\([\w-]+\)=$                           # a label
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”|^[ ]*>.*$', re.MULTILINE)


def _blank(match: re.Match) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def prose_paragraphs(page: Page) -> list[tuple[int, str]]:
    """Return the paragraphs and their first lines; all but prose is blank."""
    paragraphs: list[tuple[int, list[str]]] = []
    last = -1
    for number, line in page.prose:
        # A display may hold blank lines; it ends with its dollars.
        open_display = paragraphs and (
            "\n".join(paragraphs[-1][1]).count("$$") % 2
        )
        if number == last + 1 and (line.strip() or open_display):
            paragraphs[-1][1].append(line)
        elif line.strip():
            paragraphs.append((number, [line]))
        else:
            continue
        last = number
    return [
        (number, _NOT_PROSE.sub(_blank, "\n".join(lines)))
        for number, lines in paragraphs
    ]


def check_words(page: Page) -> list[Problem]:
    """No word that promises ease or praises, outside code and quotations."""
    pattern = re.compile(
        r"\b(" + "|".join(w.replace(" ", r"\s+") for w in BANNED) + r")\b",
        re.IGNORECASE,
    )
    return [
        page.problem(
            number + text.count("\n", 0, match.start()),
            f"`{' '.join(match[0].split())}` promises ease or praises. "
            "Leave it out, or say what holds",
        )
        for number, text in prose_paragraphs(page)
        for match in pattern.finditer(_QUOTED.sub(_blank, text))
    ]


def check_typed_numbers(page: Page) -> list[Problem]:
    """A number with three decimals in prose was copied from an output.

    Powers of ten are chosen, not measured. A comment line `% typed: why`
    above the paragraph allows any other.
    """
    allowed = False
    exempt = set()
    for i, line in enumerate(page.text.splitlines(), 1):
        allowed = line.strip() and (
            allowed or re.match(r"^%\s*typed:\s*\S", line)
        )
        if allowed:
            exempt.add(i)
    problems = []
    for number, text in prose_paragraphs(page):
        for match in re.finditer(
            r"(?<![\w.])\d+\.\d{3,}(?![\d.]*[\d/])", text
        ):
            line = number + text.count("\n", 0, match.start())
            is_power = re.fullmatch(r"0\.0*1", match[0])
            if line not in exempt and not is_power:
                problems.append(
                    page.problem(
                        line,
                        f"`{match[0]}` is typed, not computed. Use glue, or "
                        "say above the paragraph why it is a constant: "
                        "`% typed: ...`",
                    )
                )
    return problems


# Citations


_CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


def cited_keys(page: Page) -> list[tuple[int, str]]:
    """Return each key that a page cites, with the line."""
    return [
        (number, key.strip())
        for number, line in page.prose
        for match in _CITE.finditer(line)
        for key in match[1].split(",")
    ]


def bibliography_keys(bibtex: str) -> set[str]:
    """Return the keys of a BibTeX file.

    >>> bibliography_keys("@book{one2020, title={A}}")
    {'one2020'}
    """
    found = re.findall(r"^\s*@(\w+)\s*\{\s*([^,\s]+)\s*,", bibtex, re.M)
    return {
        key
        for kind, key in found
        if kind.lower() not in ("comment", "string", "preamble")
    }


def check_citations(page: Page, keys: set[str]) -> list[Problem]:
    """Each cited key is in the bibliography."""
    return [
        page.problem(
            number,
            f"{key} is not in book/references.bib. Add the source there",
        )
        for number, key in cited_keys(page)
        if key not in keys
    ]


# Cells


def check_cells_outside_directives(page: Page) -> list[Problem]:
    """No code cell inside a directive: there it would never run."""
    top = _top_level_lines(page.text)
    return [
        page.problem(
            cell.line,
            "code cell inside a directive is not executed. Use the gated "
            "form ({exercise-start}, {solution-start}) or move it out",
        )
        for cell in page.cells
        if cell.line not in top
    ] + [
        page.problem(block.line, "code-cell in a directive is not executed")
        for block in page.blocks
        if block.name not in PROSE_DIRECTIVES | {"code-cell", ""}
        and "{code-cell}" in block.text
    ]


def _top_level_lines(text: str) -> set[int]:
    lines = text.splitlines()
    top, i = set(), 0
    while i < len(lines):
        fence = _FENCE.match(lines[i])
        if fence and not (fence[1][0] == "`" and "`" in fence[2]):
            top.add(i + 1)
            i = _closing(lines, i, fence[1])
        i += 1
    return top
