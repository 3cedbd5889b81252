"""The page of features names tests that exist, and says which of them need a GPU."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "features.md").read_text("utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`( \(GPU\))?")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not re.match(r"\| (feature|---) \|", line)]


@cache
def defined_in(path: str) -> dict[str, bool]:
    """The test functions of a file by name, and whether all of the test needs a GPU."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {
        node.name: "pytest.mark.gpu" in map(ast.unparse, node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("path, name, gpu", sorted({match.groups() for match in NAMED.finditer(PAGE)}, key=str))
def test_every_named_test_exists(path, name, gpu):
    assert (ROOT / path).is_file(), f"docs/features.md names {path}, which does not exist"
    assert name in defined_in(path), f"docs/features.md names {name}, which {path} does not have"
    needs = "needs" if defined_in(path)[name] else "does not need"
    assert defined_in(path)[name] == bool(gpu), f"{path}::{name} {needs} a GPU: docs/features.md says otherwise"


def test_every_row_has_three_cells_and_a_test():
    assert len(ROWS) > 80
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 3 and all(cells), row
        assert NAMED.fullmatch(cells[2].split(", ")[0]) and len(NAMED.findall(cells[2])) == cells[2].count("::"), row


def test_every_test_of_features_is_on_the_page():
    named = {(path, name) for path, name, _ in NAMED.findall(PAGE)}
    for file in sorted((ROOT / "tests" / "vimi").glob("test_features_*.py")):
        path = file.relative_to(ROOT).as_posix()
        missing = [name for name in defined_in(path) if (path, name) not in named]
        assert not missing, f"{path} has tests that docs/features.md does not name: {missing}"
