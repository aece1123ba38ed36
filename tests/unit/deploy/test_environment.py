"""The environment is made again exactly when what would be installed has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local import environment


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the two files that say what to install."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("grpcio==1\n")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    return tmp_path


def test_the_same_wishes_have_the_same_fingerprint(root: Path) -> None:
    assert environment.fingerprint_of("dev") == environment.fingerprint_of("dev")
    (root / "README.md").write_text("does not matter")
    before = environment.fingerprint_of("dev")
    (root / "constraints.txt").touch()
    assert environment.fingerprint_of("dev") == before


def test_every_input_matters(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {environment.fingerprint_of("dev"), environment.fingerprint_of("demo"), environment.fingerprint_of("torch")}
    (root / "constraints.txt").write_text("grpcio==2\n")
    seen.add(environment.fingerprint_of("dev"))
    (root / "pyproject.toml").write_text("[project]\nname = 'penstock'\n")
    seen.add(environment.fingerprint_of("dev"))
    for name in ("WEIGHTS", "TORCH"):
        monkeypatch.setattr(environment, name, "other==1")
        seen.add(environment.fingerprint_of("dev"))
    monkeypatch.setattr("sys.version", "3.99")
    seen.add(environment.fingerprint_of("dev"))
    assert len(seen) == 8


def test_text_cannot_move_from_one_file_to_the_other_unseen(root: Path) -> None:
    before = environment.fingerprint_of("dev")
    (root / "pyproject.toml").write_text("[project]\ngrpcio==1\n")
    (root / "constraints.txt").write_text("")
    assert environment.fingerprint_of("dev") != before


def test_what_is_installed_is_not_touched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(environment, "create", (root / ".venv").mkdir)
    monkeypatch.setattr(environment, "pip_install", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr("sys.argv", ["environment.py", "demo"])
    assert environment.main() == 0
    assert any(str(root / "constraints.txt") in arguments for arguments in ran)
    ran.clear()
    assert environment.main() == 0 and ran == []
    (root / "constraints.txt").write_text("grpcio==3\n")
    (root / ".venv").rmdir() if not any((root / ".venv").iterdir()) else monkeypatch.setattr(environment, "create", int)
    assert environment.main() == 0 and ran


@pytest.mark.parametrize("arguments", [[], ["all"], ["dev", "demo"], ["--help"]])
def test_other_words_are_explained(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["environment.py", *arguments])
    assert environment.main() == 2
    assert "demo|compile|dev|torch" in capsys.readouterr().err


def test_the_pins_pin_everything_exactly() -> None:
    lines = [line for line in environment.CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    assert lines and all("==" in line for line in lines)
