"""The dashboard's password file."""

from __future__ import annotations

from pathlib import Path

from hpo.dashboard import kept_password


def test_password_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """Also where nothing was written to the output folder yet: the studies may all be in a database elsewhere."""
    path = tmp_path / "outputs" / ".dashboard-password"
    password = kept_password(path)
    assert len(password) > 16
    assert path.stat().st_mode & 0o777 == 0o600
    assert kept_password(path) == password
