"""The pages of the project are true where a machine can tell: links, files, rooms and options that they name exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from ghostify.cli.app import app

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "docs/results", "benchmarks")
PAGES = sorted(page.relative_to(ROOT) for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
ROOMS = ROOT / "ghostify"


def text_of(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", without_code(text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> Iterator[str]:
    """The links of a page that lead to no file of the project, or to no heading of it."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page))):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / page).parent / file if file else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_of_the_project_that_is_named_exists(page: Path) -> None:
    """But a file NAME stands for any, and the changes tell of files that are gone."""
    if page.name == "CHANGELOG.md":
        return
    folders = "ghostify|tests|docs|benchmarks|examples|recipes"
    named = re.findall(rf"\b((?:{folders})/[\w/.-]*\.(?:py|md|yaml))\b", text_of(page))
    assert [file for file in named if "NAME" not in file and not (ROOT / file).exists()] == []


ALONE = [
    pytest.param(block, id=str(page))
    for page in PAGES
    if page.name != "README.md"
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    if block.startswith("import ")
]


@pytest.mark.parametrize("block", ALONE)
def test_python_that_stands_alone_in_a_page_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_benchmark_is_told_of() -> None:
    page = text_of(Path("benchmarks/README.md"))
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert sorted(name for name in scripts if f"`{name}`" not in page) == []


def rooms() -> dict[str, str]:
    """What ``docs/architecture.md`` says of each room: {name as it stands there: its lines}."""
    listed = text_of(Path("docs/architecture.md")).split("\nghostify/\n")[1].split("\nrecipes/")[0]
    entries = re.split(r"^  (?=\S)", listed, flags=re.MULTILINE)[1:]
    return {entry.split()[0]: entry for entry in entries}


def test_every_room_stands_in_the_architecture() -> None:
    """A file may stand behind another that it belongs to; a folder has a line of its own."""
    listed = " ".join(rooms().values())
    found = [path for path in ROOMS.iterdir() if path.is_dir() or path.suffix == ".py"]
    names = {f"{path.name}/" if path.is_dir() else path.name for path in found}
    missing = [name for name in names if name not in listed]
    assert sorted(set(missing) - {"__pycache__/", "__main__.py"}) == []


@pytest.mark.parametrize("room", rooms())
def test_a_room_of_the_architecture_exists_with_the_files_it_names(room: str) -> None:
    place = ROOMS / room
    assert place.exists()
    there = {path.name for path in (*ROOMS.glob("*.py"), *place.rglob("*.*"))}
    named = re.findall(r"(?<![\w/.])([a-z_]+\.(?:py|html))\b", rooms()[room])
    assert [file for file in named if file not in there] == []


def test_the_architecture_lists_the_rooms_from_the_ground_up() -> None:
    """In the order of the import contract; rooms of one floor may stand in any order."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    floors = next(contract["layers"] for contract in contracts if contract["id"] == "layers")[::-1]
    floor_of = {room.strip(): number for number, floor in enumerate(floors) for room in floor.split("|")}
    listed = [name.removesuffix("/").removesuffix(".py") for name in rooms()]
    numbers = [floor_of[name] for name in listed if name != "__init__"]
    assert numbers == sorted(numbers), listed


def test_every_option_named_in_the_docs_exists() -> None:
    """Each ``ghostify VERB --option`` on a line of its own, in code, is one that the command line knows."""
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    seen = 0
    for page in PAGES:
        code = "\n".join(re.findall(r"^```.*?^```", text_of(page), re.DOTALL | re.MULTILINE))
        for line in re.findall(r"^\$? ?(ghostify .*)$", code.replace("\\\n", " "), re.MULTILINE):
            _, verb, *words = shlex.split(line, comments=True)
            known = {name for one in verbs[verb].params for name in (*one.opts, *one.secondary_opts)}
            if hasattr(verbs[verb], "commands"):
                continue
            unknown = [word for word in words if word.startswith("--") and word not in known]
            assert not unknown, f"{page}: {line}"
            seen += 1
    assert seen
