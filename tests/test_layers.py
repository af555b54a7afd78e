"""The architecture as a test: who may import whom. Reads source code and runs none of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOREIGN_TO_MODEL = {"service", "fastapi", "starlette", "pydantic", "pydantic_settings", "sqlalchemy", "sqlite3"} | {
    "prometheus_client",
    "uvicorn",
    "typer",
}
# From the lowest: each may import those below it, and itself.
LAYERS = (
    {"errors", "parent"},
    {"config", "files", "distributed"},
    {"data", "network", "bleu"},
    {"decoding"},
    {"checkpoint"},
    {"translator"},
    {"training", "search_errors"},
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Full names that a module imports anywhere in it: `from model import bleu` gives model and model.bleu."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = module.split(".")
                base = base[: len(base) - node.level + is_package]
                origin = ".".join([*base, origin] if origin else base)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def modules_under(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports_in(path: Path) -> list[str]:
    return list(imports_of(path.read_text("utf-8"), module_name(path), is_package=path.name == "__init__.py"))


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


model_modules = pytest.mark.parametrize("path", modules_under("model"), ids=module_name)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", ["torch.nn"]),
        ("def f():\n    from model import bleu", ["model", "model.bleu"]),
        ("from . import vocab", ["model.data", "model.data.vocab"]),
        ("from ..errors import DataError", ["model.errors", "model.errors.DataError"]),
    ],
)
def test_imports_are_found_in_every_form(source: str, expected: list[str]) -> None:
    assert list(imports_of(source, "model.data.corpus")) == expected
    assert list(imports_of(source, "model.data", is_package=True)) == expected


@model_modules
def test_the_model_knows_no_service_and_none_of_its_libraries(path: Path) -> None:
    assert {name for name in imports_in(path) if name.split(".")[0] in FOREIGN_TO_MODEL} == set()


@model_modules
def test_a_layer_imports_lower_layers_only(path: Path) -> None:
    parts = module_name(path).split(".")
    if len(parts) == 1:
        return  # model/__init__.py shows what all layers offer
    assert parts[1] in RANKS, f"model.{parts[1]} has no place in LAYERS yet"
    own = parts[1]
    names = imports_in(path)
    assert "model" not in names, "import the module that has the name: the package's own imports need all layers"
    imported = {name.split(".")[1] for name in names if is_within(name, "model")}
    assert {name for name in imported - {own} if RANKS[name] >= RANKS[own]} == set()


@pytest.mark.parametrize("folder", ["model/network", "model/decoding"])
def test_network_and_decoding_know_token_ids_but_no_text(folder: str) -> None:
    allowed = {"model.data", "model.data.vocab"}
    for path in modules_under(folder):
        text_modules = {
            name
            for name in imports_in(path)
            if is_within(name, "model.data") and name not in allowed and not is_within(name, "model.data.vocab")
        }
        assert text_modules == set(), path


def test_routers_know_neither_torch_nor_the_network() -> None:
    for path in modules_under("service/routers"):
        forbidden = {name for name in imports_in(path) if is_within(name, "torch") or is_within(name, "model.network")}
        assert forbidden == set(), path


@pytest.mark.parametrize("name", ["pickle", "dill", "cloudpickle", "joblib"])
def test_nothing_is_pickled(name: str) -> None:
    for path in (*modules_under("model"), *modules_under("service")):
        assert not any(is_within(imported, name) for imported in imports_in(path)), path
