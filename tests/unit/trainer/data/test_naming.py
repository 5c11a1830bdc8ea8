from __future__ import annotations

import hashlib
import hmac
import stat
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.data.naming import KEY_FILE, AsTheArchive, Disguise, Pseudonyms, choose_naming
from trainer.data.records import ImageRecord
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


PSEUDONYMS = Pseudonyms(b"k" * 32)


def disguise() -> Disguise:
    """Return the disguise of an archive with long and short identifiers."""
    records = [
        ImageRecord("0000173/L_CC.dcm", "", "0000173", "P_00820", 0, None, None),
        ImageRecord("12/R (old).dcm", "", "12", "7", 1, None, None),
        ImageRecord("mdb001.pgm", "", "mdb001", "12345", 1, None, None),
    ]
    return Disguise.of(PSEUDONYMS, Path("/data/archive"), records, ["0000999"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read 0000173/L_CC.dcm: short", f"cannot read {PSEUDONYMS.path('0000173/L_CC.dcm')}: short"),
        ("/data/archive/12/R (old).dcm is gone", f"/data/archive/{PSEUDONYMS.path('12/R (old).dcm')} is gone"),
        ("'/data/archive/new/x.dcm'", f"'/data/archive/{PSEUDONYMS.path('new/x.dcm')}'"),
        ("accession 0000173, 0000999", f"accession {PSEUDONYMS.accession('0000173')}, {PSEUDONYMS.path('0000999')}"),
        ("folder x/0000173/y", f"folder x/{PSEUDONYMS.accession('0000173')}/y"),
        ("P_00820_RIGHT and P_00820", f"{PSEUDONYMS.patient('P_00820')}_RIGHT and {PSEUDONYMS.patient('P_00820')}"),
        ("patient '7', key \"12\"", f"patient '{PSEUDONYMS.patient('7')}', key \"{PSEUDONYMS.accession('12')}\""),
        ("File 'a/12/b', line 12", f"File 'a/{PSEUDONYMS.accession('12')}/b', line 12"),
        ("loss 0.12345 in fold 7, epoch 12, step 123456", "loss 0.12345 in fold 7, epoch 12, step 123456"),
        ("xmdb001 00001730 id12345", "xmdb001 00001730 id12345"),
        ("12345.0 in 1.2.12345.3", f"{PSEUDONYMS.patient('12345')}.0 in 1.2.{PSEUDONYMS.patient('12345')}.3"),
        (
            "Patient ID: 7, accession=12",
            f"Patient ID: {PSEUDONYMS.patient('7')}, accession={PSEUDONYMS.accession('12')}",
        ),
        ("12345.", f"{PSEUDONYMS.patient('12345')}."),
    ],
)
def test_identifiers_in_a_text_stand_under_their_pseudonyms(text: str, expected: str) -> None:
    """The longest first, and none in a longer word or number; short ones only where nothing but a name can stand."""
    assert disguise().text(text) == expected
    assert disguise().text(expected) == expected


def strange() -> Disguise:
    """Return the disguise of an archive whose folders are called after people."""
    records = [
        ImageRecord("Concei\udce7\udce3o/DICOM/1.dcm", "", "555551", "p-55551", 0, None, None),
        ImageRecord("O'Brien\\Ann/DICOM/L_CC.dcm", "", "555552", "p-55552", 0, None, None),
        ImageRecord("João Souza/DICOM/L_CC.dcm", "", "555553", "p-55553", 0, None, None),
    ]
    return Disguise.of(
        PSEUDONYMS, Path("/data/archive"), records, ["Bad_Pereira/DICOM/1.dcm", "Bad_Pereira/DICOM/2.dcm"]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'/data/archive/Maria da Silva'", f"'/data/archive/{PSEUDONYMS.path('Maria da Silva')}'"),
        ("/data/archive/Maria da Silva/1.dcm: x", f"/data/archive/{PSEUDONYMS.path('Maria da Silva/1.dcm')}: x"),
        (
            repr("O'Brien\\Ann/DICOM/L_CC.dcm"),
            f'"{PSEUDONYMS.path("O" + chr(39) + "Brien" + chr(92) + "Ann/DICOM/L_CC.dcm")}"',
        ),
        ("/data/archive/555551 Maria/1.dcm: x", f"/data/archive/{PSEUDONYMS.path('555551 Maria/1.dcm')}: x"),
        (repr("Concei\udce7\udce3o"), f"'{PSEUDONYMS.path('Concei' + chr(0xDCE7) + chr(0xDCE3) + 'o')}'"),
        (unicodedata.normalize("NFD", "of João Souza"), f"of {PSEUDONYMS.path('João Souza')}"),
        ("JOÃO SOUZA", PSEUDONYMS.path("João Souza")),
        ("Bad_Pereira in DICOM, as L_CC.dcm", f"{PSEUDONYMS.path('Bad_Pereira')} in DICOM, as L_CC.dcm"),
    ],
)
def test_names_of_people_in_paths(text: str, expected: str) -> None:
    """With blanks, quotes, and accents of any kind; a folder or file that several patients have says nothing of one."""
    assert strange().text(text) == expected
    assert strange().text(expected) == expected


def test_the_root_behind_a_link(tmp_path: Path) -> None:
    """What is below it is replaced too, where a library has followed the link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "archive").symlink_to(tmp_path / "real")
    known = Disguise.of(PSEUDONYMS, tmp_path / "archive", (), ())
    assert known.text(f"{tmp_path}/real/Ana/1.dcm") == f"{tmp_path}/real/{PSEUDONYMS.path('Ana/1.dcm')}"


def test_a_data_set_that_has_pseudonyms_already(tmp_path: Path) -> None:
    """Its own names stay, and a path below the root that some error quotes does not."""
    own = PSEUDONYMS.path("a.dcm")
    known = Disguise.of(PSEUDONYMS, tmp_path, (), ())
    assert known.text(f"{own} in {tmp_path}/{own}: {tmp_path}/b.dcm") == (
        f"{own} in {tmp_path}/{own}: {tmp_path}/{PSEUDONYMS.path('b.dcm')}"
    )


def test_a_hundred_thousand_identifiers_take_no_time() -> None:
    """A trial waits for it: a text is looked through in well under a second."""
    records = [ImageRecord(f"{i:07d}/L_CC.dcm", "", f"{i:07d}", f"P{i:07d}", 0, None, None) for i in range(35_000)]
    known = Disguise.of(PSEUDONYMS, Path("/data/archive"), records, ())
    traceback = '  File "/opt/venv/lib/x.py", line 12, in f\n    return g(12)\n' * 50 + "at 0000012/L_CC.dcm"
    began = time.perf_counter()
    assert known.text(traceback).endswith(PSEUDONYMS.path("0000012/L_CC.dcm"))
    assert time.perf_counter() - began < 1.0
