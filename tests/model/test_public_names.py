"""The package's public surface: every name is there, and costs nothing before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import model


@pytest.mark.parametrize("name", model.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(model, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        model.no_such_name  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, model, model.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
