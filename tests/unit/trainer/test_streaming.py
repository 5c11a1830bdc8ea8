"""Streamed batches are those of images at hand, and reading processes come and go without a trace."""

from __future__ import annotations

import dataclasses
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from trainer.batches import Batch, Images, batch_bounds, images_on
from trainer.config import PreprocessingConfig
from trainer.data.cache import open_dataset
from trainer.data.decoding import Outcome
from trainer.data.memory_images import MemoryWriter
from trainer.data.phantom import make_phantom
from trainer.data.records import Dataset
from trainer.errors import DataError, StopRequestedError, TrainerError
from trainer.loading import Loading
from trainer.readers import HeldImages, MappedImages, reader_of
from trainer.streaming import StreamedImages, open_source

# More processes than cores are what these tests ask for on a small machine.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CPU = torch.device("cpu")
Keep = Callable[[Dataset], Dataset]


def loading(num_workers: int = 0, *, persistent: bool = False) -> Loading:
    """Streamed, with so many processes."""
    ahead = 2 if num_workers else None
    return Loading(streamed=True, num_workers=num_workers, prefetch_factor=ahead, persistent_workers=persistent)


def reading_processes() -> list[psutil.Process]:
    """The processes that read ahead for this one: children of its fork server."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return [process for server in servers for process in server.children()]


def is_alive(process: psutil.Process) -> bool:
    """Whether *process* runs; one that only waits to be noticed, by whoever took it over, does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def passes(n_images: int) -> Iterator[np.ndarray]:
    """Orders of several epochs: all images, a fold with repetitions, a few."""
    generator = np.random.default_rng(5)
    yield generator.permutation(n_images)
    yield generator.choice(n_images, size=n_images // 2)
    yield np.arange(3, 7)


def same(streamed: StreamedImages, resident: Images, order: np.ndarray) -> bool:
    """Whether both give the same batches of four."""
    bounds = batch_bounds(len(order), 4)
    pairs = zip(streamed.batches(order, bounds), resident.batches(order, bounds), strict=True)
    return all(equal(one, other) for one, other in pairs)


def equal(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same to the bit."""
    tensors = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(Batch)]
    return all((a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in tensors)


@pytest.fixture
def in_plain_memory(dataset: Dataset) -> Dataset:
    """The small data set with vectors of another backbone."""
    vectors = np.random.default_rng(1).random((len(dataset.records), 3), dtype=np.float32)
    return dataclasses.replace(dataset, features=vectors)


@pytest.fixture
def in_file(dataset: Dataset, tmp_path: Path) -> Dataset:
    """The small data set as a map of a file, as in a cache."""
    np.save(tmp_path / "images.npy", np.asarray(dataset.images))
    return dataclasses.replace(dataset, images=np.load(tmp_path / "images.npy", mmap_mode="c"))


@pytest.fixture
def in_memory_file(dataset: Dataset) -> Dataset:
    """The small data set as a map of memory."""
    assert isinstance(dataset.images, np.ndarray)
    with MemoryWriter(dataset.images.shape[1]) as writer:
        for image in dataset.images:
            writer.add(Outcome("pixels"), image)
        return dataclasses.replace(dataset, images=writer.images(range(len(dataset.images))))


@dataclasses.dataclass(frozen=True)
class Archive:
    """A synthetic archive, opened in two ways."""

    root: Path
    on_demand: Dataset
    on_disk: Dataset


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """32 images of 8 patients."""
    folder = tmp_path_factory.mktemp("phantom") / "archive"
    make_phantom(folder, patients=8, side=128)
    root, small = folder / "archive", PreprocessingConfig(img_size=32)
    on_demand, on_disk = (
        open_dataset(folder / "classificacao.csv", root, small, folder.parent / "cache", cache_mode=mode)
        for mode in ("none", "disk")
    )
    return Archive(root, on_demand, on_disk)


@pytest.mark.parametrize("kind", ["in_plain_memory", "in_file", "in_memory_file"])
@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_batches_are_those_of_images_at_hand(
    kind: str, num_workers: int, persistent: bool, request: pytest.FixtureRequest
) -> None:
    """Whoever reads them and wherever they lie, the batches of every pass are the same to the bit."""
    dataset = request.getfixturevalue(kind)
    with open_source(dataset, CPU, loading(num_workers, persistent=persistent)) as streamed:
        assert isinstance(streamed, StreamedImages)
        assert [same(streamed, images_on(dataset, CPU), order) for order in passes(31)] == [True] * 3
    assert not reading_processes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_that_are_decoded_again(archive: Archive, num_workers: int) -> None:
    """Images that are decoded in the reading processes are those of the cache, to the bit."""
    with open_source(archive.on_demand, CPU, loading(num_workers)) as streamed:
        assert isinstance(streamed, StreamedImages)
        resident = images_on(archive.on_disk, CPU)
        assert [same(streamed, resident, order) for order in passes(32)] == [True] * 3


def test_images_at_hand_are_not_streamed(in_file: Dataset) -> None:
    """Where nothing is streamed the batches come from the map itself."""
    at_hand = Loading(streamed=False, num_workers=0, prefetch_factor=None, persistent_workers=False)
    with open_source(in_file, CPU, at_hand) as source:
        assert isinstance(source, Images)
        assert source.pixels.data_ptr() == np.asarray(in_file.images).ctypes.data


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_is_drawn(in_file: Dataset, num_workers: int) -> None:
    """No global generator moves: dropout draws the same, however images are loaded."""
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    with open_source(in_file, CPU, loading(num_workers)) as source:
        for order in passes(31):
            list(source.batches(order, batch_bounds(len(order), 4)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before[1:]  # noqa: NPY002


@pytest.mark.parametrize("persistent", [False, True])
def test_leaving_early(in_file: Dataset, persistent: bool) -> None:
    """Who stops in the middle of a pass leaves no process but those to be kept, and the next pass is right."""
    order = np.arange(31)

    def stop_at_once(source: StreamedImages) -> None:
        for _ in source.batches(order, batch_bounds(31, 4)):
            raise StopRequestedError("asked to stop")

    streamed = StreamedImages(in_file, CPU, loading(2, persistent=persistent))
    for _ in range(2):
        with pytest.raises(StopRequestedError):
            stop_at_once(streamed)
        assert len(reading_processes()) == (2 if persistent else 0)
        assert same(streamed, images_on(in_file, CPU), order[::-1].copy())
    streamed.close()
    assert not reading_processes()
    assert same(streamed, images_on(in_file, CPU), order)
    streamed.close()
    assert not reading_processes()


def test_an_abandoned_pass_does_not_end_the_next(in_file: Dataset) -> None:
    """A pass that was left but not forgotten, as a traceback can hold it, takes only its own processes with it."""
    order, bounds = np.arange(31), batch_bounds(31, 4)
    streamed = StreamedImages(in_file, CPU, loading(2))
    abandoned = streamed.batches(order, bounds)
    next(abandoned)
    current = streamed.batches(order, bounds)
    next(current)
    abandoned.close()
    assert len(list(current)) == len(bounds) - 1
    assert not reading_processes()


@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_file_that_is_gone(archive: Archive, num_workers: int, persistent: bool) -> None:
    """It is the same error from every process: one line that names the file; and once it is back, all is well."""
    dataset, order = archive.on_demand, np.arange(32)
    path = archive.root / dataset.records[17].path
    away = path.rename(path.with_suffix(".away"))
    streamed = StreamedImages(dataset, CPU, loading(num_workers, persistent=persistent))
    try:
        with pytest.raises(DataError) as error:
            list(streamed.batches(order, batch_bounds(32, 4)))
    finally:
        away.rename(path)
    assert str(error.value).startswith(f"{path}: cannot be decoded any more: ")
    assert "\n" not in str(error.value)
    assert not reading_processes()
    assert same(streamed, images_on(archive.on_disk, CPU), order)
    streamed.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_cache_that_is_gone(in_file: Dataset, tmp_path: Path, num_workers: int) -> None:
    """The map that is open goes on; a process that would open it says which file is gone."""
    (tmp_path / "images.npy").unlink()
    order = np.arange(31)
    streamed = StreamedImages(in_file, CPU, loading(num_workers))
    if num_workers == 0:
        assert same(streamed, images_on(in_file, CPU), order)
    else:
        with pytest.raises(DataError, match=r"images\.npy: the decoded images cannot be opened any more"):
            list(streamed.batches(order, batch_bounds(31, 4)))


def test_a_killed_process_is_an_error_and_not_a_hang(in_file: Dataset) -> None:
    """Ctrl-C leaves reading processes alone; one that is killed is named, the others end, and the next pass is right."""
    order, bounds = np.arange(31), batch_bounds(31, 4)
    streamed = StreamedImages(in_file, CPU, loading(2, persistent=True))
    assert same(streamed, images_on(in_file, CPU), order)
    batches = streamed.batches(order, bounds)
    next(batches)
    for process in reading_processes():
        process.send_signal(signal.SIGINT)
    assert len(list(batches)) == len(bounds) - 1
    batches = streamed.batches(order, bounds)
    next(batches)
    victim = reading_processes()[0]
    victim.kill()
    with pytest.raises(TrainerError, match=f"process {victim.pid} was ended by SIGKILL") as error:
        list(batches)
    assert not isinstance(error.value, DataError)
    assert "\n" not in str(error.value)
    assert not reading_processes()
    assert same(streamed, images_on(in_file, CPU), order)
    streamed.close()


SCRIPT = """
import sys
import numpy as np, torch
from trainer.data.records import Dataset, ImageRecord
from trainer.loading import Loading
from trainer.streaming import StreamedImages
records = tuple(ImageRecord(str(i), "", "", "", 0, None, None) for i in range(8))
data = Dataset(np.load(sys.argv[1], mmap_mode="c"), records, ("A",), (), "")
loading = Loading(streamed=True, num_workers=1, prefetch_factor=1, persistent_workers=False)
batches = StreamedImages(data, torch.device("cpu"), loading).batches(np.arange(8), [(i, i + 1) for i in range(8)])
next(batches)
print("reading", flush=True)
sys.stdin.read()
"""


def test_reading_processes_die_with_the_one_that_trains(in_file: Dataset, tmp_path: Path) -> None:
    """After a kill of the process that trains nothing of it is left, not even its fork server."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "images.npy")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) == 3  # the fork server, a reading process, and Python's tracker of shared memory
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(is_alive(child) for child in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(child) for child in started)


def test_nothing_large_is_sent_to_a_process(in_file: Dataset, in_memory_file: Dataset, dataset: Dataset) -> None:
    """A map is sent as its file's name; a part of a map is not mistaken for the whole."""
    for mapped in (in_file.images, in_memory_file.images):
        assert isinstance(mapped, np.memmap)
        reader = reader_of(mapped)
        assert isinstance(reader, MappedImages)
        sent = pickle.dumps(reader)
        assert len(sent) < 1000
        everything = pickle.loads(sent).read(np.arange(31))  # noqa: S301 - our own
        assert np.array_equal(everything, np.asarray(dataset.images))
        part = reader_of(mapped[10:])
        assert isinstance(part, HeldImages)
        assert np.array_equal(part.read(np.array([0])), np.asarray(dataset.images)[[10]])
