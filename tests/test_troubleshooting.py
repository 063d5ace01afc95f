"""The page on what goes wrong: every message that the code raises is on it, and it tells of no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ghostify import errors

HOME = Path(__file__).parents[1]
PAGE = (HOME / "docs/troubleshooting.md").read_text(encoding="utf-8")
GAP = "…"
NOT_OURS = {"ValueError", "TypeError", "AttributeError", "KeyError", "RuntimeError", "NotImplementedError"}


@cache
def patterns() -> list[str]:
    """The messages of the page: what stands between backticks in the first cell of a row."""
    cells = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    return [pattern for cell in cells for pattern in re.findall(r"`([^`]+)`", cell)]


def flat(node: ast.expr) -> str | None:
    """The text of a string or an f-string, with a gap for each value in it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


@cache
def trees() -> list[tuple[str, ast.Module]]:
    files = sorted((HOME / "ghostify").rglob("*.py"))
    return [(str(file.relative_to(HOME)), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


@cache
def texts() -> str:
    """Every text in the code, one behind the other."""
    nodes = (node for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.expr))
    return "\n".join(text for node in nodes if (text := flat(node)))


def raised() -> Iterator[tuple[str, str]]:
    """Each message that is raised as it is written, with its file."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            name = getattr(node.exc.func, "id", "")
            message = flat(node.exc.args[0])
            if (name.endswith("Error") or name == "error") and name not in NOT_OURS and message:
                yield file, message


def covers(pattern: str, message: str) -> bool:
    """Whether the words of a pattern stand in a message, in their order."""
    pieces = [re.escape(piece.strip()) for piece in pattern.split(GAP) if piece.strip(" .;:,")]
    return bool(pieces) and re.search(".*".join(pieces), message, re.DOTALL) is not None


def words(message: str) -> str:
    return re.sub(rf"[\s{GAP}.,:;()']+", "", message)


@pytest.mark.parametrize(("file", "message"), sorted(told for told in set(raised()) if words(told[1])))
def test_a_message_that_is_raised_is_on_the_page(file: str, message: str) -> None:
    """Those with no word of their own, which pass on another's, are that other's to explain."""
    assert any(covers(pattern, message) for pattern in patterns()), f"{file}: {message}"


@pytest.mark.parametrize("pattern", patterns())
def test_a_message_of_the_page_is_one_that_the_code_has(pattern: str) -> None:
    """Three words of it in a row are enough: some messages are put together from several texts."""
    python = ("missing a required argument", "unexpected keyword argument")  # the words of Python itself
    rows = [piece.strip(" .;:,(").split() for piece in pattern.split(GAP)]
    runs = [" ".join(row[start : start + 3]) for row in rows for start in range(max(1, len(row) - 2))]
    assert any(run in texts() for run in runs if run) or any(words in pattern for words in python), pattern


def test_every_kind_of_error_is_named() -> None:
    kinds = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert [name for name in kinds if f"`{name}`" not in PAGE] == []


def test_every_row_says_what_happened_and_what_to_do() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            assert len(re.split(r"(?<!\\)\|", line)) == 5, line
