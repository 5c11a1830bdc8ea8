from __future__ import annotations

import hashlib
import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.data.naming import KEY_FILE, AsTheArchive, choose_naming
from trainer.errors import DataError


def test_pseudonyms_are_keyed_hashes(tmp_path: Path) -> None:
    """They are what the documentation says, the same for the same key, and different by kind and by key."""
    naming = choose_naming(tmp_path, pseudonyms=True)
    key = bytes.fromhex((tmp_path / KEY_FILE).read_text())
    expected = hmac.new(key, b"patient:0042", hashlib.sha256).hexdigest()[:16]
    assert naming.patient("0042") == f"patient-{expected}"
    assert choose_naming(tmp_path, pseudonyms=True) == naming
    other = choose_naming(tmp_path / "other", pseudonyms=True)
    names = {each(text) for each in (naming.patient, naming.accession, naming.path, other.path) for text in ("1", "01")}
    assert len(names) == 8
    assert naming.identity != other.identity
    assert not any("0042" in name for name in names)


def test_the_key_is_its_owners(tmp_path: Path) -> None:
    """Nobody else can read the key, and processes that start together have the same."""
    with ThreadPoolExecutor(8) as threads:
        namings = list(threads.map(lambda _: choose_naming(tmp_path, pseudonyms=True).patient("1"), range(16)))
    assert len(set(namings)) == 1
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("content", ["", "xyz", "ab" * 31])
def test_a_damaged_key(tmp_path: Path, content: str) -> None:
    """A key that is none is an error: another one would give other names."""
    (tmp_path / KEY_FILE).write_text(content)
    with pytest.raises(DataError, match="pseudonyms"):
        choose_naming(tmp_path, pseudonyms=True)


def test_as_the_archive(tmp_path: Path) -> None:
    """Without pseudonyms nothing is renamed and no key is made."""
    naming = choose_naming(tmp_path, pseudonyms=False)
    assert naming == AsTheArchive()
    assert (naming.patient("1"), naming.accession("2"), naming.path("3/4")) == ("1", "2", "3/4")
    assert not list(tmp_path.iterdir())
