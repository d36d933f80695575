"""Each test in tests/ asserts something; no comparison stands for itself."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("test_*.py"))


def _name(call: ast.Call) -> str:
    """Return the last part of what is called: "raises" of pytest.raises."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _asserts_itself(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return not isinstance(node.test, ast.Constant)
    if not isinstance(node, ast.Call):
        return False
    name = _name(node)
    return (
        name in ("raises", "warns")
        or name.startswith("assert_")
        or name == "fail"
    )


def _functions(tree: ast.Module) -> dict[str, ast.AST]:
    return {
        node.name: node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def asserts(
    function: ast.AST,
    helpers: dict[str, ast.AST],
    seen: frozenset[str] = frozenset(),
) -> bool:
    """Say whether running a function asserts, itself or in a helper.

    Args:
        helpers: the functions of the same file, which are followed.
        seen: helpers on the way here, so that recursion ends.
    """
    for statement in function.body:
        for node in ast.walk(statement):
            if _asserts_itself(node):
                return True
            if not isinstance(node, ast.Call):
                continue
            name = _name(node)
            if name in helpers and name not in seen:
                if asserts(helpers[name], helpers, seen | {name}):
                    return True
    return False


def is_test(node: ast.AST) -> bool:
    return isinstance(
        node, ast.FunctionDef | ast.AsyncFunctionDef
    ) and node.name.startswith("test")


def without_assertion(source: str) -> list[tuple[int, str]]:
    """Return line and name of each test that asserts nothing."""
    tree = ast.parse(source)
    helpers = _functions(tree)
    return [
        (node.lineno, node.name)
        for node in ast.walk(tree)
        if is_test(node) and not asserts(node, helpers)
    ]


def idle_comparisons(source: str) -> list[tuple[int, str]]:
    """Return line and text of each statement that compares and forgets.

    So does a call of a function that only answers, such as allclose.
    """
    answers = ("allclose", "equal", "isclose", "gradcheck", "isinstance")
    return [
        (node.lineno, ast.unparse(node))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and (
            isinstance(node.value, ast.Compare | ast.BoolOp)
            or (
                isinstance(node.value, ast.UnaryOp)
                and isinstance(node.value.op, ast.Not)
            )
            or (
                isinstance(node.value, ast.Call)
                and _name(node.value) in answers
            )
        )
        and not _must_raise(node, source)
    ]


def _must_raise(statement: ast.Expr, source: str) -> bool:
    """Say whether a statement stands under pytest.raises or warns."""
    return any(
        isinstance(node, ast.With)
        and node.lineno <= statement.lineno <= node.end_lineno
        and any(
            isinstance(item.context_expr, ast.Call)
            and _name(item.context_expr) in ("raises", "warns")
            for item in node.items
        )
        for node in ast.walk(ast.parse(source))
    )


def test_the_tests_are_found():
    assert Path(__file__) in FILES


@pytest.mark.parametrize(
    "file", FILES, ids=lambda file: file.relative_to(TESTS).as_posix()
)
def test_each_test_asserts_something(file):
    source = file.read_text("utf8")
    bad = [
        f"{file}:{line}: {name} asserts nothing. End it in an assert"
        for line, name in without_assertion(source)
    ] + [
        f"{file}:{line}: `{text}` compares and forgets. Write assert"
        for line, text in idle_comparisons(source)
    ]
    assert not bad, "\n" + "\n".join(bad)


@pytest.mark.parametrize(
    "body",
    [
        "assert f(1) == 1",
        "for i in range(3):\n        assert i < 3",
        "torch.testing.assert_close(a, b)",
        "np.testing.assert_allclose(a, b)",
        "with pytest.raises(ValueError, match='x'):\n        f(1)",
        "with pytest.warns(UserWarning):\n        f(1)",
        "check(1)",
        "twice(1)",
        "assert gradcheck(f, x)",
    ],
)
def test_a_test_that_asserts_is_accepted(body):
    source = (
        "def check(x):\n    assert x\n"
        "def twice(x):\n    check(x)\n"
        f"def test_it():\n    {body}\n"
    )
    assert without_assertion(source) == []
    assert idle_comparisons(source) == []


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "f(1)",
        "assert True",
        "print(1)",
        "helper(1)",
        "loop(1)",
        "a == b",
        "check_gone(1)",
    ],
)
def test_a_test_that_asserts_nothing_is_rejected(body):
    source = (
        "def helper(x):\n    return x\n"
        "def loop(x):\n    loop(x)\n"
        f"class TestIt:\n    def test_it(self):\n        {body}\n"
    )
    assert without_assertion(source) == [(6, "test_it")]


@pytest.mark.parametrize(
    "statement",
    [
        "a == b",
        "a < b and c",
        "not a",
        "torch.allclose(a, b)",
        "torch.equal(a, b)",
        "gradcheck(f, x)",
    ],
)
def test_a_comparison_that_is_forgotten_is_rejected(statement):
    source = f"def test_it():\n    assert x\n    {statement}\n"
    assert [line for line, _ in idle_comparisons(source)] == [3]


def test_a_comparison_that_must_raise_is_accepted():
    source = "with pytest.raises(TypeError):\n    a < b\n"
    assert idle_comparisons(source) == []
