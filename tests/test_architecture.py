"""The table of `docs/architecture.md`: which room may import which, and which third-party packages. No circles."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = ROOT / "dco_trl", ROOT / "docs" / "architecture.md"


def read_table() -> dict[str, tuple[set[str], set[str]]]:
    """For each room, a file or a folder of the package: the rooms it may import, and the third-party packages."""
    table = {}
    for line in PAGE.read_text().splitlines():
        cells = [re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[0]:
            table[cells[0][0]] = (set(cells[3]), set(cells[4]))
    return table


ROOMS = read_table()
# The package itself and its entry point are above all rooms.
ABOVE = {"__init__", "__main__"}
BELOW = {"cores", "errors", "extras"}


def imports(file: Path) -> tuple[set[str], set[Path]]:
    """Top-level packages that a file imports, and the package's own files."""
    names, own = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            folder = file.parents[node.level - 1]
            target = folder.joinpath(*(node.module or "").split("."))
            for alias in node.names:
                own.add(next((f for f in (target / f"{alias.name}.py", *_files(target)) if f.is_file()), target))
    return {name for name in names if name not in sys.stdlib_module_names}, own


def _files(target: Path) -> list[Path]:
    return [target.with_suffix(".py"), target / "__init__.py"]


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_a_file_imports_what_its_room_may(file):
    third_party, own = imports(file)
    if room_of(file) in ABOVE | BELOW:
        return
    rooms, packages = ROOMS[room_of(file)]
    # Any room may ask the package for its version, say that an extra is missing, and what a user did wrong.
    reached = {room_of(target) for target in own} - {room_of(file), "__init__", *BELOW}
    assert reached <= rooms, f"{file.name} reaches into {sorted(reached - rooms)}"
    third_party -= packages | {"lazy_loader"}
    assert not third_party, f"{file.name} imports {sorted(third_party)}"


def test_rooms_and_files_make_no_circle():
    rooms = {room: allowed for room, (allowed, _) in ROOMS.items()}
    files = {file: imports(file)[1] - {file} for file in FILES if room_of(file) not in ABOVE}
    # A package's `__init__` is a list of names; whoever is in the package may be named there.
    files = {file: own for file, own in files.items() if file.name != "__init__.py"}
    for arrows in (rooms, files):
        left = dict(arrows)
        while left:
            ends = [node for node, targets in left.items() if not targets & left.keys()]
            assert ends, f"a circle among {sorted(map(str, left))}"
            for node in ends:
                del left[node]


def test_every_room_is_in_the_table():
    assert {room_of(file) for file in FILES} - ABOVE - BELOW == set(ROOMS)


def test_the_picture_is_the_table():
    def reached(room: str) -> set[str]:
        return set().union(*({target} | reached(target) for target in ROOMS[room][0]))

    # An arrow for each room that is reached by no longer way.
    arrows = {
        (room, target)
        for room, (targets, _) in ROOMS.items()
        for target in targets
        if not any(target in reached(other) for other in targets - {target})
    }
    drawing = PAGE.with_suffix(".svg").read_text()
    assert set(re.findall(r'data-from="(\w+)" data-to="(\w+)"', drawing)) == arrows
    assert all(f">{room}<" in drawing for room in ROOMS)


def test_the_page_names_files_that_exist():
    text = PAGE.read_text().split("## What to touch")[1]
    folders = (ROOT, PACKAGE, *(PACKAGE / room for room in ROOMS))
    for name in set(re.findall(r"`([\w/.]+(?:\.\w+|/))`", text)):
        assert any((folder / name).exists() for folder in folders), name
