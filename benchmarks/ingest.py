"""
The data path from files to batches: building a data set, decoding, preprocessing, gathering, opening it again, and memory.

Machines are noisy: what is compared is measured in turns, and counts as the median of the ratios of the turns.

A build (`open_dataset` with an empty cache: reading, hashing, decoding and writing, on all cores) is held against the same
`read_mammogram` and `preprocess` in one process with one thread, times the number of cores. A build of few images is subtracted
from one of many, so that the start of the decoders is in one ratio and not in the other. Beside it stand what one such process
for each core reaches together, which is what the machine gives, and the ratio of the seconds of processor time, which others on
the machine change least: that may be above 1, because decoders keep memory that a process of its own would fault in again.
The files are in the page cache, the data set is not. Memory is that of a process which has loaded torch too, and its decoders.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from full_size import ENCODINGS, mammogram, tissue
from numpy.typing import NDArray
from tiny_archive import write_tiny_archive

from trainer.batches import Images
from trainer.config import PreprocessingConfig
from trainer.data import decoder
from trainer.data.cache import open_dataset
from trainer.data.decoder import Request
from trainer.data.decoder_pool import Decoder
from trainer.data.image_file import read_header, read_mammogram
from trainer.data.preprocess import preprocess
from trainer.readers import reader_of

CORES = len(os.sched_getaffinity(0))
CONFIG = PreprocessingConfig()
TINY_CONFIG = PreprocessingConfig(img_size=32)
SPAWN = multiprocessing.get_context("spawn")
PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "torch")
SLOW_ENCODINGS = {"JPEG 2000", "JPEG lossless"}
FEW = 8 * max(1, CORES - 1)
"""Images for which a build starts a decoder on every core."""
GATHERED = 512
"""Images of the array from which batches are gathered."""


@dataclass
class Turns:
    """Values of one figure, one a turn."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)


@dataclass(frozen=True)
class Archive:
    """Images of one encoding in the archive layout."""

    root: Path
    files: list[Path]
    few: Path
    """Labels of the first `FEW`."""
    all: Path
    """Labels of all."""


def main() -> None:
    """Measure, print a table, and write the record."""
    asked = parse()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of the decoders
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    record: dict[str, Any] = {"machine": machine(), "load_before": os.getloadavg(), "rounds": asked.rounds}
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="ingest-") as name:
        folder = Path(name)
        if "gather" in asked.parts:
            record["gather"] = measured_gathering(folder, asked.rounds)
        if "warm" in asked.parts:
            record["warm"] = measured_warm_start(folder, asked.tiny_files, asked.rounds)
        if "build" in asked.parts:
            record["reply_ms"] = measured_reply(folder, asked.rounds)
            record["build"] = measured_builds(folder, asked)
    record["load_after"] = os.getloadavg()
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\nload {record['load_before'][0]:.1f} before, {record['load_after'][0]:.1f} after; {asked.json}")


def parse() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn, few files: to see that it works")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each figure")
    parser.add_argument("--tiny-files", type=int, default=20_000, help="files of the warm start")
    parser.add_argument("--encodings", nargs="+", choices=list(ENCODINGS), default=list(ENCODINGS))
    parser.add_argument("--parts", nargs="+", choices=["build", "gather", "warm"], default=["build", "gather", "warm"])
    parser.add_argument("--folder", type=Path, help="where temporary files go: 2 GB")
    parser.add_argument("--json", type=Path, default=Path("build/ingest.json"), help="the record")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.tiny_files = 1, min(asked.tiny_files, 2000)
    return asked


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": CORES,
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that *run* takes."""
    return costs(run)[0]


def costs(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that *run* takes, and those of processor time, of processes that it ends too."""
    started, worked = time.perf_counter(), processor_s()
    run()
    return time.perf_counter() - started, processor_s() - worked


def processor_s() -> float:
    """Return the processor time of this process and those that it has ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured_builds(folder: Path, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Print and return the figures of each encoding."""
    figures: dict[str, dict[str, Any]] = {}
    print("                 against one process x cores            s   ms of processor time an image           MiB")
    print(
        "                  whole  no start  separate  work   start   decode  preproc  hash  header  print  other   peak"
    )
    with ProcessPoolExecutor(CORES, mp_context=SPAWN, initializer=cv2.setNumThreads, initargs=(1,)) as processes:
        for encoding in asked.encodings:
            n_images = FEW * (2 if asked.quick or encoding in SLOW_ENCODINGS else 8)
            with full_size_archive(folder / "full", encoding, n_images, processes) as archive:
                turns: dict[str, Turns] = {}
                for _ in range(asked.rounds):
                    for name, value in build_turn(archive, folder / "cache", processes).items():
                        turns.setdefault(name, Turns()).values.append(value)
                figure = {name: turn.median for name, turn in turns.items()}
                figure["peak_anonymous_mib"] = peak_anonymous(archive, folder / "cache") / 2**20
            figures[encoding] = figure | {"turns": {name: turn.values for name, turn in turns.items()}}
            print(
                f"{encoding:15s} " + " ".join(f"{figure[name]:{width}.{digits}f}" for name, width, digits in _COLUMNS)
            )
    print("JPEG-LS          no encoder here")
    return figures


def build_turn(archive: Archive, cache: Path, processes: Executor) -> dict[str, float]:
    """Return every figure of one turn."""
    sample = archive.files[: FEW // 2]
    alone = [costs(partial(decode_all, sample))]
    few, everything = (built(labels, archive.root, cache) for labels in (archive.few, archive.all))
    shares = [archive.files[start:FEW:CORES] for start in range(CORES)]
    together_s = timed(lambda: list(processes.map(decode_all, shares))) / sum(map(len, shares))
    alone.append(costs(partial(decode_all, sample)))
    image_s, image_work_s = (statistics.mean(column) / len(sample) for column in zip(*alone, strict=True))
    n_more = len(archive.files) - FEW
    each_s, each_work_s = ((more - less) / n_more for more, less in zip(everything, few, strict=True))
    parts = parts_ms(sample)
    return {
        "whole": image_s / CORES / (everything[0] / len(archive.files)),
        "without_start": image_s / CORES / each_s,
        "separate": image_s / CORES / together_s,
        "processor": image_work_s / each_work_s,
        "start_s": few[0] - FEW * each_s,
        "images_a_second": 1 / each_s,
        "images_a_second_alone": 1 / image_s,
        **parts,
        "other_ms": 1000 * (each_work_s - image_work_s) - sum(parts[name] for name in _ONLY_IN_A_BUILD),
    }


_COLUMNS = (
    *(("whole", 7, 2), ("without_start", 9, 2), ("separate", 9, 2), ("processor", 5, 2), ("start_s", 7, 2)),
    *(("decode_ms", 8, 1), ("preprocess_ms", 8, 1), ("hash_ms", 5, 1), ("header_ms", 7, 1), ("fingerprint_ms", 6, 1)),
    *(("other_ms", 6, 1), ("peak_anonymous_mib", 6, 0)),
)
_ONLY_IN_A_BUILD = ("hash_ms", "header_ms", "fingerprint_ms")


def parts_ms(sample: Sequence[Path]) -> dict[str, float]:
    """Return the milliseconds of processor time that each part of the work takes in this thread, as medians over *sample*."""
    parts: dict[str, list[float]] = {}

    def note(name: str, run: Callable[[], Any]) -> Any:
        started = time.thread_time()
        value = run()
        parts.setdefault(name, []).append(1000 * (time.thread_time() - started))
        return value

    for path in sample:
        note("hash_ms", partial(sha256, path))
        note("header_ms", partial(read_header, path))
        decoded = note("decode_ms", partial(read_mammogram, path, apply_window=True))
        note("fingerprint_ms", decoded.fingerprint)
        note("preprocess_ms", partial(preprocess, decoded, CONFIG))
    return {name: statistics.median(values) for name, values in parts.items()}


def measured_reply(folder: Path, rounds: int) -> float:
    """Print and return the milliseconds by which a tiny file's decoding takes longer when another process is asked for it."""
    write_tiny_archive(folder / "one", 1)
    path = next((folder / "one").rglob("*.dcm"))
    differences = []
    with contextlib.closing(Decoder(CONFIG)) as process:
        asked = partial(process.ask, Request(task="decode", path=path))
        asked()
        for _ in range(20 * rounds):
            here_s = timed(partial(decoder.decode, path, CONFIG))
            differences.append(1000 * (timed(asked) - here_s))
    print(f"to ask another process for an image of {CONFIG.img_size} px: {statistics.median(differences):.2f} ms\n")
    return statistics.median(differences)


def sha256(path: Path) -> str:
    """Return the hash of the bytes of *path*."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decode_all(paths: Sequence[Path]) -> None:
    """Decode and preprocess *paths*, and keep nothing."""
    for path in paths:
        preprocess(read_mammogram(path, apply_window=True), CONFIG)


def build(labels: Path, root: Path, cache: Path) -> None:
    """Build the data set."""
    open_dataset(labels, root, CONFIG, cache)


def built(labels: Path, root: Path, cache: Path) -> tuple[float, float]:
    """Return what a build `costs`, of which nothing is left."""
    try:
        return costs(partial(build, labels, root, cache))
    finally:
        shutil.rmtree(cache)


def peak_anonymous(archive: Archive, cache: Path) -> int:
    """Return the bytes of anonymous memory that a process which builds has at most, its decoders included."""
    building = SPAWN.Process(target=build, args=(archive.all, archive.root, cache))
    building.start()
    process, peak = psutil.Process(building.pid), 0
    while building.is_alive():
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, sum(anonymous(each.pid) for each in (process, *process.children(recursive=True))))
        time.sleep(0.005)
    building.join()
    shutil.rmtree(cache)
    return peak


def anonymous(pid: int) -> int:
    """Return the bytes of anonymous memory of a process, 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Anonymous:"):
                return 1024 * int(line.split()[1])
    return 0


@contextlib.contextmanager
def full_size_archive(folder: Path, encoding: str, n_images: int, processes: Executor) -> Iterator[Archive]:
    """Give an archive of *n_images*, each with pixels of its own; it goes in the end."""
    suffix, _ = ENCODINGS[encoding]
    root = folder / "archive"
    files = [root / f"{number:05d}" / f"image{suffix}" for number in range(n_images)]
    shares = [range(start, n_images, CORES) for start in range(CORES)]
    list(processes.map(write_images, [encoding] * CORES, shares, [[files[i] for i in share] for share in shares]))
    yield Archive(root, files, write_labels(folder / "few.csv", FEW), write_labels(folder / "all.csv", n_images))
    shutil.rmtree(folder)


def write_images(encoding: str, numbers: Sequence[int], paths: Sequence[Path]) -> None:
    """Write the images of *numbers* to *paths*."""
    encode, common = ENCODINGS[encoding][1], tissue()
    for number, path in zip(numbers, paths, strict=True):
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(mammogram(number, common), number))


def write_labels(path: Path, n_images: int) -> Path:
    """Write labels of the first *n_images* to *path* and return it."""
    rows = "".join(f"{number:05d},{1 + number % 4}\n" for number in range(n_images))
    path.write_text(f"AccessionNumber,Classification\n{rows}", encoding="utf-8")
    return path


def measured_gathering(folder: Path, rounds: int) -> dict[str, float]:
    """Print and return how many images of 512 px a second one thread gathers into batches."""
    path = folder / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (GATHERED, 512, 512), dtype=np.uint8))
    mapped = np.load(path, mmap_mode="c")
    reader = reader_of(mapped)
    on_device = Images(torch.from_numpy(mapped), torch.zeros(GATHERED, dtype=torch.int64))
    int(mapped.sum(dtype=np.uint64))  # every page is there
    figures: dict[str, float] = {}
    print("images of 512 px gathered per second by one thread; of a plain copy")
    for batch_size in (16, 32):
        order = np.random.default_rng(1).permutation(GATHERED).reshape(-1, batch_size)
        buffer = np.empty((batch_size, 512, 512), np.uint8)
        runs: dict[str, Callable[[], object]] = {
            "copied": partial(copy_all, mapped, buffer),
            "read": partial(gather_all, reader.read, order),
            "on_the_processor": partial(gather_all, on_device.batch, torch.from_numpy(order)),
        }
        turns = {name: Turns() for name in runs}
        for run in runs.values():
            run()
        for _ in range(3 * rounds):
            for name, run in runs.items():
                turns[name].values.append(GATHERED / timed(run))
        for name in ("read", "on_the_processor"):
            pairs = zip(turns[name].values, turns["copied"].values, strict=True)
            share = statistics.median(one / other for one, other in pairs)
            figures |= {f"{name}_{batch_size}": turns[name].median, f"{name}_{batch_size}_of_copy": share}
            print(f"batches of {batch_size}, {name:17s} {turns[name].median:8.0f} {share:6.2f}")
    print()
    return figures


def copy_all(images: NDArray[np.uint8], buffer: NDArray[np.uint8]) -> None:
    """Copy *images* to *buffer*, as many at once as it takes."""
    for begin in range(0, len(images), len(buffer)):
        np.copyto(buffer, images[begin : begin + len(buffer)])


def gather_all(gather: Callable[[Any], object], order: Iterable[Any]) -> None:
    """Gather each batch of *order*."""
    for indices in order:
        gather(indices)


def measured_warm_start(folder: Path, n_files: int, rounds: int) -> dict[str, float]:
    """Print and return how long it takes to open a data set that is decoded already, and to decode it first."""
    labels, root = write_tiny_archive(folder / "tiny", n_files)
    cache = folder / "tiny-cache"
    settled = time.time() + 3  # a file that has just been written is read again
    while time.time() < settled:
        time.sleep(0.1)

    def opened() -> None:
        open_dataset(labels, root, TINY_CONFIG, cache)

    first_s = timed(opened)
    warm, stat = Turns(), Turns()
    for _ in range(rounds):
        stat.values.append(timed(partial(stat_all, root)))
        warm.values.append(timed(opened))
    times = statistics.median(one / other for one, other in zip(warm.values, stat.values, strict=True))
    print(f"{n_files} tiny files: {first_s:.1f} s to decode them; {warm.median:.2f} s to open them again, ", end="")
    print(f"{times:.1f} times a walk that looks at each\n")
    shutil.rmtree(folder / "tiny")
    shutil.rmtree(cache)
    return {"first_s": first_s, "warm_s": warm.median, "of_a_walk": times}


def stat_all(root: Path) -> None:
    """Look at every file below *root*, as little as that takes."""
    for folder, _, names in os.walk(root):
        for name in names:
            os.stat(f"{folder}/{name}")  # noqa: PTH116  as the code that is measured does


if __name__ == "__main__":
    main()
