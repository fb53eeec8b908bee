"""Imports flow one way: each package may import only those above it in the list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

MDI = Path(__file__).parent.parent / "mdi"
# Packages on one line do not know each other.
ORDER = [
    ["errors", "__init__"],
    ["model", "wire", "cluster", "plan"],
    ["engine", "hub"],
    ["profile"],
    ["node"],
    ["pipeline"],
    ["simulate", "serve"],
    ["cli"],
]
RANK = {package: rank for rank, packages in enumerate(ORDER) for package in packages}
MAX_LINES = 500


def role_of(module: str) -> str:
    """`mdi.wire.frame` is of `wire`, `mdi` itself of `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(source: Path) -> set[str]:
    """Roles of our own modules that a file imports, anywhere in it."""
    roles = set()
    for statement in ast.walk(ast.parse(source.read_text())):
        if isinstance(statement, ast.Import):
            roles |= {role_of(alias.name) for alias in statement.names if alias.name.split(".")[0] == "mdi"}
        elif isinstance(statement, ast.ImportFrom) and statement.module and statement.module.split(".")[0] == "mdi":
            if statement.module == "mdi":
                roles |= {alias.name if (MDI / alias.name).is_dir() else "__init__" for alias in statement.names}
            else:
                roles.add(role_of(statement.module))
    return roles


SOURCES = sorted(path for path in MDI.rglob("*.py") if not path.name.startswith("mdi_pb2"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(MDI)))
def test_imports_flow_one_way(source: Path) -> None:
    relative = source.relative_to(MDI)
    own = relative.parts[0] if len(relative.parts) > 1 else relative.stem
    for role in imported(source) - {own}:
        assert RANK[role] < RANK[own], f"{relative} imports mdi.{role}, which is not above {own}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(MDI)))
def test_no_file_is_too_long(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= MAX_LINES
