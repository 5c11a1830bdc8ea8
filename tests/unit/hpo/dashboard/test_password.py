from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpo.dashboard.password import PasswordError, choose_password


def test_a_random_password_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """Also where nothing was written to the output folder yet: the studies may all be in a database elsewhere."""
    kept = tmp_path / "outputs" / ".dashboard-password"
    password = choose_password(None, None, kept)
    assert len(password.secret) > 16
    assert password.file == kept
    assert kept.stat().st_mode & 0o777 == 0o600
    assert choose_password(None, None, kept).secret == password.secret
    assert list(kept.parent.iterdir()) == [kept]


def test_an_output_tree_that_is_read_only_leaves_it_elsewhere(tmp_path: Path) -> None:
    """A file of the temporary folder, for its owner alone, in which the password is."""
    (tmp_path / "outputs").write_text("no folder", encoding="utf-8")
    password = choose_password(None, None, tmp_path / "outputs" / ".dashboard-password")
    assert password.file is not None
    assert password.file.stat().st_mode & 0o777 == 0o600
    assert password.file.read_text(encoding="utf-8").strip() == password.secret
    password.file.unlink()


def test_a_file_wins_over_the_environment_and_chance(tmp_path: Path) -> None:
    """Its line is the password, spaces and all, without the line's end; nothing random is made."""
    file = tmp_path / "password"
    file.write_bytes("päss wörd \r\n".encode())
    file.chmod(0o600)
    kept = tmp_path / "kept"
    password = choose_password(file, "other", kept)
    assert (password.secret, password.warning) == ("päss wörd ", None)
    assert choose_password(None, "other", kept).secret == "other"  # noqa: S105 - of a test
    assert not kept.exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"   \n", b"one\nsecret two\n", b"secret \xff\xfe", b"x" * 5000])
def test_a_file_without_one_password_is_refused(tmp_path: Path, content: bytes) -> None:
    """In one line that names the file and shows nothing of what is in it."""
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(PasswordError, match=str(file)) as refused:
        choose_password(file, None, tmp_path / "kept")
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No password of chance in place of the one that was meant."""
    with pytest.raises(PasswordError, match=r"No such file"):
        choose_password(tmp_path / "nothing", None, tmp_path / "kept")
    with pytest.raises(PasswordError, match=r"directory"):
        choose_password(tmp_path, None, tmp_path / "kept")


@pytest.mark.parametrize(("mode", "who"), [(0o644, "everybody"), (0o640, "group"), (0o600, None)])
def test_a_file_that_others_can_read_is_said(tmp_path: Path, mode: int, who: str | None) -> None:
    """It is used, with a warning."""
    file = tmp_path / "password"
    file.write_text("x\n", encoding="utf-8")
    file.chmod(mode)
    warning = choose_password(file, None, tmp_path / "kept").warning
    assert (warning is None) if who is None else (warning is not None and who in warning)


def test_a_password_is_not_shown_by_accident(tmp_path: Path) -> None:
    """What a debugger or a traceback prints of it is where it is."""
    assert "tell-nobody" not in repr(choose_password(None, "tell-nobody", tmp_path / "kept"))


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(PasswordError, match=r"a file .* was expected"):
        choose_password(pipe, None, tmp_path / "kept")


def test_a_byte_order_mark_is_no_part_of_the_password(tmp_path: Path) -> None:
    """Some editors write one, and no keyboard can type it."""
    file = tmp_path / "password"
    file.write_bytes(b"\xef\xbb\xbfsesame\r\n")
    assert choose_password(file, None, tmp_path / "kept").secret == "sesame"  # noqa: S105 - of a test


def test_what_is_kept_and_empty_says_what_to_do(tmp_path: Path) -> None:
    """A start that was killed, or a full disk, may have left it so."""
    (tmp_path / "kept").touch()
    with pytest.raises(PasswordError, match=r"remove the file"):
        choose_password(None, None, tmp_path / "kept")


def test_a_start_that_is_killed_leaves_no_empty_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there whole or not at all."""
    kept = tmp_path / "kept"

    def die(_bytes: int) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr("secrets.token_urlsafe", die)
        with pytest.raises(KeyboardInterrupt):
            choose_password(None, None, kept)
    assert not kept.exists()
    assert choose_password(None, None, kept).file == kept


def test_a_password_of_the_environment_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 could never be typed; they are not shown."""
    with pytest.raises(PasswordError, match=r"environment is no text") as refused:
        choose_password(None, os.fsdecode(b"secret\xe4"), tmp_path / "kept")
    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__
