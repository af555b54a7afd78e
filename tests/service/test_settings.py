"""Settings from the environment; a wrong one is told in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, load_settings, unknown_variables


def test_a_variable_sets_its_field_and_an_option_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECURRA_PORT", "9001")
    monkeypatch.setenv("RECURRA_MAX_TEXTS", "7")
    assert (load_settings().port, load_settings().max_texts) == (9001, 7)
    assert load_settings(port=9002, host=None).port == 9002


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECURRA_PORT", "")
    assert load_settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "abc", "a whole number from 0 to 65535"),
        ("PORT", "65536", "a whole number from 0 to 65535"),
        ("MAX_TEXTS", "0", "a whole number of at least 1"),
        ("MAX_TEXTS", "1.5", "a whole number of at least 1"),
        ("DEVICE", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("DRAIN_SECONDS", "nan", "a number from 0 to 3600"),
        ("DEFAULT_K", "65", "at most RECURRA_MAX_K = 64"),
    ],
)
def test_a_wrong_value_names_variable_value_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(f"RECURRA_{name}", value)
    with pytest.raises(SettingsError) as refusal:
        load_settings()
    line = str(refusal.value)
    assert "\n" not in line
    assert f"RECURRA_{name} is" in line
    assert value in line
    assert line.endswith(allowed)


def test_every_wrong_setting_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECURRA_PORT", "x")
    monkeypatch.setenv("RECURRA_DEVICE", "y")
    with pytest.raises(SettingsError) as refusal:
        load_settings()
    assert len(str(refusal.value).splitlines()) == 2


def test_a_table_too_small_for_the_widest_beam_is_refused() -> None:
    with pytest.raises(SettingsError, match="RECURRA_MAX_ROWS is 63"):
        load_settings(max_rows=63)


def test_a_misspelt_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECURRA_PROT", "1")
    monkeypatch.setenv("RECURRA_PORT", "1")
    assert unknown_variables() == ["RECURRA_PROT"]


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_checkpoints_are_those_given_else_here_else_the_projects(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RECURRA_CHECKPOINTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert load_settings(checkpoints=tmp_path / "x").checkpoints_path == tmp_path / "x"
    assert load_settings().checkpoints_path == Path(__file__).parents[2] / "checkpoints"
    (tmp_path / "checkpoints").mkdir()
    assert load_settings().checkpoints_path.resolve() == tmp_path / "checkpoints"


def test_reading_the_settings_does_not_cost_the_import_of_torch() -> None:
    code = "import sys, service.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
