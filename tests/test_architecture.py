"""The table of `docs/architecture.md`: which room may import which, and which third-party packages. No circles."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dco_trl"

# A room is a file or a folder of the package. For each: the rooms it may import, and the third-party packages.
BARE = {"accelerate", "datasets", "jaxtyping", "numpy", "peft", "pyarrow", "torch", "tqdm", "transformers", "trl"}
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "checks": (set(), {"numpy"}),
    "coverage": ({"checks"}, {"jaxtyping", "torch"}),
    "coverage_numpy": (set(), {"numpy"}),
    "theory": ({"checks", "coverage_numpy"}, {"numpy"}),
    "problem": (set(), set()),
    "statistics": ({"checks", "coverage_numpy"}, {"numpy", "scipy"}),
    "grading": (
        set(),
        {"latex2sympy2_extended", "antlr4", "math_verify", "numpy", "reasoning_gym", "sandlock", "sympy", "tqdm"},
    ),
    "sampling": (
        {"problem", "statistics"},
        {"anyio", "httpx", "numpy", "peft", "torch", "tqdm", "transformers", "trl", "vllm"},
    ),
    "runs": ({"checks", "grading", "problem", "sampling"}, {"datasets", "numpy", "pyarrow", "tqdm"}),
    "report": ({"runs", "statistics"}, {"matplotlib", "numpy", "plotly", "pyarrow", "rich"}),
    "trainer": ({"checks", "coverage", "grading", "problem", "runs", "sampling", "statistics"}, BARE | {"vllm"}),
    "demo": (
        {"checks", "coverage", "problem", "report", "sampling", "trainer"},
        BARE | {"matplotlib", "rich", "tokenizers"},
    ),
    "cli": ({"demo", "grading", "report", "runs", "sampling", "statistics", "trainer"}, BARE | {"rich", "yaml"}),
}
# The package itself and its entry point are above all rooms.
ABOVE = {"__init__", "__main__"}
BELOW = {"extras"}


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
    # Any room may ask the package for its version, and say that an extra is missing.
    reached = {room_of(target) for target in own} - {room_of(file), "__init__", "extras"}
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
