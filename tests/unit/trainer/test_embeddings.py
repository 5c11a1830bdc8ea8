"""Vectors of another backbone: whose they are, that no image goes without its own, and that the data's hash covers them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.batches import images_on
from trainer.config import PreprocessingConfig
from trainer.data.records import Dataset, ImageRecord
from trainer.embeddings import (
    EmbeddingRecord,
    Origin,
    check_free,
    find,
    read_embeddings,
    sha256,
    to_metadata,
    to_npy,
    write,
)
from trainer.errors import InputError
from trainer.records import Resolution

Row = tuple[str, str]
"""Image and accession number."""

TWO_OF_ONE = ("007/a.dcm", "007"), ("007/b.dcm", "007"), ("70/a.dcm", "70")


def data_of(rows: Sequence[Row]) -> Dataset:
    """Return a data set of black images."""
    records = tuple(ImageRecord(image, "0" * 64, accession, accession, 0, None, None) for image, accession in rows)
    return Dataset(np.zeros((len(rows), 4, 4), np.uint8), records, ("A",), (), "hash without features")


def numbered(n: int) -> NDArray[np.float32]:
    """Return (n, 3) vectors that tell their number."""
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3)


def write_folder(folder: Path, rows: Sequence[Row], vectors: NDArray[np.generic] | None = None) -> Path:
    """Write a folder of embeddings as other programs do, without a record, and return it."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "features.npy", numbered(len(rows)) if vectors is None else vectors)
    lines = ["image,accession,path", *(f"{image},{accession},/elsewhere/{image}" for image, accession in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def complaint(dataset: Dataset, folder: Path) -> str:
    """Return the one line with which *folder* is refused."""
    with pytest.raises(InputError) as caught:
        read_embeddings(folder).attach(dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_vectors_come_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    """The folder's order is its own, and images that the data set does not have are left out."""
    rows = [("70/a.dcm", "70"), ("other/x.dcm", "other"), ("007/b.dcm", "007"), ("007/a.dcm", "007")]
    features = read_embeddings(write_folder(tmp_path, rows)).attach(data_of(TWO_OF_ONE)).features
    assert features is not None
    assert features.dtype == np.float32
    assert np.array_equal(features, numbered(4)[[3, 2, 0]])


def test_what_we_write_can_be_attached(dataset: Dataset, tmp_path: Path) -> None:
    """Names with commas, quotes and line breaks come back."""
    odd = dataclasses.replace(dataset.records[0], path='a,"b"\n/ü.dcm')
    records = (odd, *dataset.records[1:])
    (tmp_path / "features.npy").write_bytes(to_npy(numbered(len(records))))
    (tmp_path / "metadata.csv").write_bytes(to_metadata(records, Path("archive")))
    features = read_embeddings(tmp_path).attach(dataclasses.replace(dataset, records=records)).features
    assert features is not None
    assert np.array_equal(features, numbered(len(records)))
    last = dataset.records[-1]
    lines = (tmp_path / "metadata.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "image,accession,path"
    assert lines[-1] == f"{last.path},{last.accession},archive/{last.path}"


def test_the_one_vector_of_an_accession_serves_all_its_images(tmp_path: Path) -> None:
    """Where no vector is of the image, the accession number decides, with its zeros."""
    rows = [("elsewhere/1.png", "007"), ("elsewhere/2.png", "70"), ("", "7")]
    features = read_embeddings(write_folder(tmp_path, rows)).attach(data_of(TWO_OF_ONE)).features
    assert features is not None
    assert np.array_equal(features, numbered(3)[[0, 0, 1]])


def test_an_image_comes_before_an_accession(tmp_path: Path) -> None:
    """An image has its own vector although another one has its accession number too."""
    rows = [("elsewhere", "007"), ("007/b.dcm", "007"), ("007/a.dcm", "007"), ("70/a.dcm", "70")]
    features = read_embeddings(write_folder(tmp_path, rows)).attach(data_of(TWO_OF_ONE)).features
    assert features is not None
    assert np.array_equal(features, numbered(4)[[2, 1, 3]])


@pytest.mark.parametrize(
    ("rows", "image", "why"),
    [
        ([("007/a.dcm", "007"), ("70/a.dcm", "70")], "007/b.dcm", "has 1 of"),  # and not the vector of 007/a.dcm
        ([("x", "007"), ("y", "007"), ("70/a.dcm", "70")], "007/a.dcm", "has 2 of"),
        (
            [("007/a.dcm", "007"), ("gone", "007"), ("70/a.dcm", "70")],
            "007/b.dcm",
            "has 2 of",
        ),  # that was another image
        ([("x", "7"), ("70/a.dcm", "70")], "007/a.dcm", "has none of"),
        ([("007/a.dcm", "1"), ("007/b.dcm", "1")], "70/a.dcm", "has none of"),
    ],
)
def test_an_image_without_a_vector_is_named(tmp_path: Path, rows: list[Row], image: str, why: str) -> None:
    """Neither a guess among several vectors nor another image's vector."""
    line = complaint(data_of(TWO_OF_ONE), write_folder(tmp_path, rows))
    assert str(tmp_path) in line
    assert f"no vector for image {image}" in line
    assert why in line


def test_how_many_images_have_none_is_said(tmp_path: Path) -> None:
    """The first is named, the others counted."""
    assert "2 of 3 have none" in complaint(data_of(TWO_OF_ONE), write_folder(tmp_path, [("70/a.dcm", "70")]))


@given(st.data())
def test_every_image_gets_its_own_vector_or_its_accessions(data: st.DataObject) -> None:
    """Whatever the order, and whichever accessions have one vector in place of one an image."""
    counts = data.draw(st.dictionaries(st.text("0123456789", min_size=1, max_size=3), st.integers(1, 3), min_size=1))
    images = [(f"{accession}/{i}", accession) for accession, count in counts.items() for i in range(count)]
    by_accession = {accession for accession in counts if data.draw(st.booleans())}
    rows = [row for row in images if row[1] not in by_accession] + [("", accession) for accession in by_accession]
    rows = data.draw(st.permutations(rows))
    with tempfile.TemporaryDirectory() as folder:
        features = read_embeddings(write_folder(Path(folder), rows)).attach(data_of(images)).features
    assert features is not None
    expected = [rows.index(("", row[1]) if row[1] in by_accession else row) for row in images]
    assert np.array_equal(features, numbered(len(rows))[expected])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,accession\n007/a.dcm,007\n70/a.dcm,70\n",
        "path,accession,label,image\r\n/x,007,3,007/a.dcm\r\n/y,70,1,70/a.dcm\r\n",
        ' image , accession \n"007/a.dcm", 007 \n70/a.dcm,70\n\n',
    ],
)
def test_tables_of_other_programs(tmp_path: Path, text: str) -> None:
    """A mark of the byte order, other columns, another order of them, blank lines, and zeros before a number."""
    write_folder(tmp_path, [("a", "1"), ("b", "2")])
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    features = read_embeddings(tmp_path).attach(data_of([TWO_OF_ONE[0], TWO_OF_ONE[2]])).features
    assert features is not None
    assert np.array_equal(features, numbered(2))


@pytest.mark.parametrize("dtype", ["float64", ">f4", "float16", "int64", "uint8"])
def test_numbers_of_every_type_become_float32(tmp_path: Path, dtype: str) -> None:
    """In the machine's order of bytes, in memory that torch may have."""
    vectors = numbered(3).astype(dtype)
    features = read_embeddings(write_folder(tmp_path, TWO_OF_ONE, vectors)).attach(data_of(TWO_OF_ONE)).features
    assert features is not None
    assert np.array_equal(features, numbered(3))
    assert features.dtype == np.float32
    assert torch.equal(torch.from_numpy(features), torch.from_numpy(numbered(3)))


@pytest.mark.parametrize(
    ("vectors", "what"),
    [
        (np.zeros(3, np.float32), "float32 (3,)"),
        (np.zeros((3, 2, 2), np.float32), "float32 (3, 2, 2)"),
        (np.zeros((3, 2), np.complex64), "complex64 (3, 2)"),
        (np.zeros((3, 2), np.bool_), "bool (3, 2)"),
        (np.array([["1", "2"]] * 3), "<U1 (3, 2)"),
        (np.zeros((3, 0), np.float32), "float32 (3, 0)"),
        (np.zeros((0, 3), np.float32), "float32 (0, 3)"),
        (np.array([[1.0], [np.nan], [np.inf]]), "row 1, from 0"),
        (np.array([[1.0], [2.0], [1e300]]), "row 2, from 0"),
    ],
)
def test_vectors_that_are_none_are_refused(tmp_path: Path, vectors: NDArray[np.generic], what: str) -> None:
    """The file is named, what it holds, and what was expected."""
    line = complaint(data_of(TWO_OF_ONE), write_folder(tmp_path, TWO_OF_ONE, vectors))
    assert "features.npy" in line
    assert what in line
    assert "float32" in line


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    """An array of Python objects is refused, not unpickled."""
    write_folder(tmp_path, TWO_OF_ONE)
    np.save(tmp_path / "features.npy", np.array([[{}], [{}], [{}]]), allow_pickle=True)
    assert "features.npy: cannot be read" in complaint(data_of(TWO_OF_ONE), tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array", b"PK\x03\x04", to_npy(numbered(3))[:-1]])
def test_a_broken_array_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, cut off in its head or its numbers, or something else."""
    write_folder(tmp_path, TWO_OF_ONE)
    (tmp_path / "features.npy").write_bytes(content)
    assert "features.npy: cannot be read" in complaint(data_of(TWO_OF_ONE), tmp_path)


@pytest.mark.parametrize("shape", ["(9223372036854775808, 2)", "(True, 3)", "(-1, 3)", "(3,", "3"])
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, shape: str) -> None:
    """A shape that no array can have."""
    write_folder(tmp_path, TWO_OF_ONE)
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    (tmp_path / "features.npy").write_bytes(head + bytes(36))
    assert "features.npy: cannot be read" in complaint(data_of(TWO_OF_ONE), tmp_path)


@given(
    features=st.one_of(
        st.binary(max_size=200), st.binary(max_size=200).map(lambda data: to_npy(numbered(3))[:64] + data)
    ),
    metadata=st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: f"image,accession\n{text}".encode())
    ),
)
def test_any_bytes(features: bytes, metadata: bytes) -> None:
    """Whatever the files hold, they are refused in one way or attached."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for broken, content in (("features.npy", features), ("metadata.csv", metadata)):
            write_folder(folder, TWO_OF_ONE)
            (folder / broken).write_bytes(content)
            with contextlib.suppress(InputError):
                features = read_embeddings(folder).attach(data_of(TWO_OF_ONE)).features
                assert features is not None
                assert (len(features), features.dtype) == (len(TWO_OF_ONE), np.float32)
                assert np.isfinite(features).all()


def test_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    """A .npz is not what was expected, under any name."""
    write_folder(tmp_path, TWO_OF_ONE)
    with (tmp_path / "features.npy").open("wb") as stream:
        np.savez(stream, features=numbered(3))
    assert "features.npy: cannot be read" in complaint(data_of(TWO_OF_ONE), tmp_path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("image,path\na,b\n", "line 1: expected a column image and a column accession, found image, path"),
        ("", "found none"),
        ("image,image,accession\na,b,c\n", "line 1"),
        ("image,accession\n007/a.dcm,007\n007/b.dcm\n70/a.dcm,70\n", "line 3: 1 fields"),
        (
            "image,accession\n007/a.dcm,007\n007/b.dcm,007\n007/a.dcm,007\n",
            "line 4: image '007/a.dcm' is in line 2 too",
        ),
        ("image,accession\n007/a.dcm,007\n", "1 rows, expected 3"),
        ('image,accession\n"007/a.dcm,007\n', "expected a table in UTF-8"),
        ("image,accession\n\xff/a.dcm,007\n", "expected a table in UTF-8"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path: Path, text: str, what: str) -> None:
    """The file is named, the line, and what was expected."""
    write_folder(tmp_path, TWO_OF_ONE)
    (tmp_path / "metadata.csv").write_bytes(text.encode("latin-1"))
    line = complaint(data_of(TWO_OF_ONE), tmp_path)
    assert str(tmp_path / "metadata.csv") in line
    assert what in line


@pytest.mark.parametrize("name", ["features.npy", "metadata.csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    """Half a folder, or none, is one line with the file's path."""
    (write_folder(tmp_path, TWO_OF_ONE) / name).unlink()
    assert str(tmp_path / name) in complaint(data_of(TWO_OF_ONE), tmp_path)


def test_the_hash_covers_the_vectors(tmp_path: Path) -> None:
    """It follows every number and the shape, and not the folder, its order or its type; the data's own stays what it is."""
    dataset = data_of(TWO_OF_ONE)
    order = [2, 0, 1]
    changed = numbered(3)
    changed[1, 1] += 1
    folders = {
        "plain": write_folder(tmp_path / "a", TWO_OF_ONE),
        "moved": write_folder(tmp_path / "b", [TWO_OF_ONE[i] for i in order], numbered(3)[order].astype(np.float64)),
        "changed": write_folder(tmp_path / "c", TWO_OF_ONE, changed),
        "shape": write_folder(tmp_path / "d", TWO_OF_ONE, np.zeros((3, 2), np.float32)),
        "other shape": write_folder(tmp_path / "e", TWO_OF_ONE, np.zeros((3, 3), np.float32)),
    }
    hashes = {name: read_embeddings(folder).attach(dataset).features_hash for name, folder in folders.items()}
    assert hashes["plain"] == hashes["moved"]
    assert len({None, *hashes.values()}) == 5
    attached = read_embeddings(folders["plain"]).attach(dataset)
    assert (attached.data_hash, attached.records) == (dataset.data_hash, dataset.records)
    assert (dataset.features, dataset.features_hash) == (None, None)


def test_batches_carry_the_vectors_of_their_images(dataset: Dataset, tmp_path: Path) -> None:
    """What is attached reaches the network beside its own image."""
    rows = [(record.path, record.accession) for record in dataset.records]
    vectors = dataset.images.reshape(len(rows), -1)[:, :5].astype(np.float32)  # of each image, its own first pixels
    shuffled = np.random.default_rng(1).permutation(len(rows))
    folder = write_folder(tmp_path, [rows[i] for i in shuffled], vectors[shuffled])
    source = images_on(read_embeddings(folder).attach(dataset), torch.device("cpu"))
    (batch,) = source.batches(np.array([7, 3, 11]), [(0, 3)])
    assert batch.features is not None
    assert torch.equal(batch.features, batch.images[:, 0, 0, :5].float())


ORIGIN = Origin(arch="resnet18", backbone_sha256="b", preprocessing=PreprocessingConfig(), data_hash="d")


def write_ours(folder: Path, resolution: Resolution) -> EmbeddingRecord:
    """Write a folder of embeddings as the command does and return its record."""
    features, metadata = to_npy(numbered(2)), b"image,accession,path\n007/a.dcm,007,x\n70/a.dcm,70,y\n"
    record = EmbeddingRecord(
        origin=ORIGIN, weights="imagenet", n_images=2, n_features=3, rejected={}, resolution=resolution,
        features_sha256=sha256(features), metadata_sha256=sha256(metadata), git_commit=None, git_dirty=None,
        versions={}, command="", started_at=datetime.now(UTC), finished_at=datetime.now(UTC),
    )  # fmt: skip
    write(folder, features, metadata, record)
    return record


def refusal(folder: Path, origin: Origin = ORIGIN) -> str:
    """Return the one line that refuses to take what is in *folder* for the embeddings of *origin*."""
    with pytest.raises(InputError) as caught:
        find(folder, origin)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_embeddings_are_found(tmp_path: Path, resolution: Resolution) -> None:
    """What was written is found by its origin; without a record there is nothing."""
    assert find(tmp_path, ORIGIN) is None
    record = write_ours(tmp_path, resolution)
    assert find(tmp_path, ORIGIN) == record
    (tmp_path / "embeddings.json").unlink()
    assert find(tmp_path, ORIGIN) is None


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({"arch": "resnet50"}, "other arch"),
        ({"backbone_sha256": "c"}, "other backbone_sha256"),
        ({"data_hash": "e", "preprocessing": PreprocessingConfig(img_size=64)}, "other preprocessing, data_hash"),
    ],
)
def test_embeddings_of_another_origin_are_refused(
    tmp_path: Path, resolution: Resolution, other: dict[str, object], names: str
) -> None:
    """The line says what is there and in what it differs."""
    write_ours(tmp_path, resolution)
    line = refusal(tmp_path, ORIGIN.model_copy(update=other))
    assert "holds other embeddings, of resnet18 with weights imagenet" in line
    assert names in line


@pytest.mark.parametrize("content", ["", "{}", '{"arch": "resnet50"}', "[1"])
def test_a_record_of_others_is_refused(tmp_path: Path, content: str) -> None:
    """A file of that name that is not ours is neither read as one nor replaced."""
    (tmp_path / "embeddings.json").write_text(content)
    assert "its embeddings.json is not one of this version" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["features.npy", "metadata.csv"])
def test_damaged_embeddings_are_not_taken_for_whole(tmp_path: Path, resolution: Resolution, name: str) -> None:
    """A file that is not the one in the record is refused, changed or gone, also by whoever wants to train with them."""
    write_ours(tmp_path, resolution)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content.replace(b"7", b"8").replace(b"\x80", b"\x81"))
    assert f"its {name} is not the one that embeddings.json records" in refusal(tmp_path)
    assert f"its {name} is not the one that embeddings.json records" in complaint(data_of(TWO_OF_ONE), tmp_path)
    path.unlink()
    assert f"its {name} is not the one that embeddings.json records" in refusal(tmp_path)


def test_only_the_same_content_makes_place(tmp_path: Path) -> None:
    """Nothing there and just that content are fine; other content and a folder are refused with the folder's name."""
    path = tmp_path / "metadata.csv"
    check_free(path, b"same")
    path.write_bytes(b"same")
    check_free(path, b"same")
    with pytest.raises(InputError, match=rf"{tmp_path}: holds another metadata\.csv; name another folder"):
        check_free(path, b"other")
    (tmp_path / "features.npy").mkdir()
    with pytest.raises(InputError, match=r"holds another features\.npy"):
        check_free(tmp_path / "features.npy", b"same")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_leaves_whole_files_and_no_record(
    tmp_path: Path, resolution: Resolution, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whichever file it meets, those before it are whole, and no other is there, not even in part."""
    sync, synced = os.fsync, []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_ours(tmp_path, resolution)
    assert {path.name for path in tmp_path.iterdir()} == set(("metadata.csv", "features.npy")[: at - 1])
    assert find(tmp_path, ORIGIN) is None
