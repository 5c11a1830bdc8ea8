from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from trainer.config import PreprocessingConfig
from trainer.data.decoder import MAX_OWN_BYTES, Reply, Request, decode, inspect, show
from trainer.data.decoder_pool import MEMORY_BYTES, Decoder, DecoderPool, _Memory
from trainer.data.mammogram import MAX_PIXELS
from trainer.data.records import Code
from trainer.errors import TrainerError

WriteDicom = Callable[..., Path]

CONFIG = PreprocessingConfig(img_size=64)


class Watch:
    """The most anonymous memory that this process's decoders had, all together, in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until it is ended."""
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, sum(anonymous(child.pid) for child in psutil.Process().children()))

    def end(self) -> None:
        """Look no longer."""
        self._ended.set()


def anonymous(pid: int) -> int:
    """The anonymous memory of a process, in bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous"))


def timeless(reply: Reply) -> Reply:
    """The answer, whenever it was given."""
    return reply.model_copy(update={"read_ns": 0})


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch the memory of decoders meanwhile."""
    watch = Watch()
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


def test_answers_are_in_order_and_the_same_as_here(phantom: Path, tmp_path: Path) -> None:
    """Decoders answer in the order of the files, with what this process finds in them."""
    (tmp_path / "empty").touch()
    paths = [tmp_path / "empty", *sorted(phantom.rglob("*.dcm"))[:20], tmp_path / "absent"]
    with DecoderPool(CONFIG, len(paths)) as pool:
        inspected = [reply for reply, _ in pool.answers("inspect", ((path, 0) for path in paths))]
        decoded = list(pool.answers("decode", ((path, 10**6) for path in paths)))
    expected_replies = [inspect(path) for path in paths]
    assert [timeless(reply) for reply in inspected] == [timeless(reply) for reply in expected_replies]
    assert all(reply.read_ns > 0 for reply in inspected[:-1])
    for path, (reply, image) in zip(paths, decoded, strict=True):
        expected_reply, expected = decode(path, CONFIG)
        assert reply == expected_reply
        assert (image is None) == (expected is None)
        if image is not None:
            np.testing.assert_array_equal(image, expected)
    assert decoded[0][0].code == Code.NOT_IMAGE
    assert decoded[-1][0].code == Code.UNDECODABLE


def test_a_file_that_kills_or_hangs_its_decoder(phantom: Path, tmp_path: Path) -> None:
    """It costs that file alone: the next one is decoded by a new process."""
    good = next(phantom.rglob("*.dcm"))
    hanging = tmp_path / "hanging"
    os.mkfifo(hanging)  # whoever opens it waits for a writer
    decoder = Decoder(CONFIG, timeout_s=3)
    assert decoder.ask(Request(task="decode", path=good))[1] is not None
    reply, image = decoder.ask(Request(task="decode", path=hanging))
    assert (reply.code, image) == (Code.UNDECODABLE, None)
    assert "no answer after 3 s" in str(reply.reason)
    assert decoder.ask(Request(task="decode", path=good))[1] is not None
    assert decoder._process is not None
    os.kill(decoder._process.pid, signal.SIGKILL)  # as a machine does that is out of memory: not the file's fault
    time.sleep(0.1)
    assert decoder.ask(Request(task="decode", path=good))[1] is not None
    decoder.close()


def test_decoders_that_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation is said to be one, and no file is blamed."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(TrainerError, match="image decoders do not work here"):
        Decoder(CONFIG).ask(Request(task="inspect", path=Path("x")))


def large_file(write_dicom: WriteDicom, height: int, width: int, **tags: object) -> tuple[Path, int]:
    """An uncompressed film with a breast in it, and its number of pixels."""
    pixels = np.zeros((height, width), dtype=np.uint16)
    pixels[height // 8 : 7 * height // 8, : width // 2] = 1000 + np.arange(width // 2) % 2000
    return write_dicom(pixels, BitsStored=12, HighBit=11, **tags), height * width


def test_memory_of_large_images(write_dicom: WriteDicom) -> None:
    """Films of 48 and 64 megapixels and small images together leave the decoders within their memory, and are decoded."""
    film, pixels = large_file(write_dicom, 8000, 6000)
    # Padding as bright as tissue takes the most memory: where it is at the edge has to be found out.
    padded, _ = large_file(write_dicom, 8000, 6000, PixelPaddingValue=2999)
    huge, most = large_file(write_dicom, 8192, 8192)
    small, few = large_file(write_dicom, 200, 160)
    assert most == MAX_PIXELS
    files = [(small, few), (film, pixels), (padded, pixels), (small, few), (huge, most), (small, few)]
    with watched() as watch, DecoderPool(CONFIG, 100) as pool:
        for reply, image in pool.answers("decode", files):
            assert reply.code is None
            assert image is not None
    for path in {path for path, _ in files}:
        path.unlink()  # a third of a gigabyte
    assert 4 * most < watch.peak < MEMORY_BYTES


def test_memory_that_is_kept(write_dicom: WriteDicom) -> None:
    """A decoder keeps what an image needed for the next one, and gives it back where that is more than it may keep."""
    film, pixels = large_file(write_dicom, 3328, 2560)
    at_rest = []
    for kept_bytes in (2**30, 0):
        decoder = Decoder(CONFIG, kept_bytes=kept_bytes)
        assert decoder.ask(Request(task="decode", path=film))[1] is not None
        assert decoder._process is not None
        at_rest.append(anonymous(decoder._process.pid))
        decoder.close()
    film.unlink()
    assert at_rest[1] < 64 * 2**20 < at_rest[1] + 3 * pixels < at_rest[0]


def test_memory_is_shared_out() -> None:
    """Shares that are held at one time are never more than there is, and one that is larger than all of it gets all."""
    memory = _Memory(100)
    held, most, lock = 0, 0, threading.Lock()

    def hold(size: int) -> None:
        nonlocal held, most
        with memory.share(size):
            with lock:
                held += min(size, 100)
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= min(size, 100)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(hold, [0, 30, 60, 100, 1000, 50, 50, 1] * 20))
    assert held == 0
    assert 50 <= most <= 100
    with pytest.raises(RuntimeError), memory.share(100):
        raise RuntimeError
    with memory.share(100):  # what an error held is free again
        pass


def test_a_stream_that_asks_for_more_memory_than_its_header_promised(tmp_path: Path) -> None:
    """A decoder that asks for more than any image needs gets an error, and serves the next file."""
    greedy = tmp_path / "greedy.dcm"
    head = b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    # In the one group whose values are read whatever their length.
    greedy.write_bytes(head + b"\x02\x00\x02\x01OB\0\0" + (2**31).to_bytes(4, "little") + bytes(100))
    assert MAX_OWN_BYTES < 2**31
    decoder = Decoder(CONFIG)
    for task in ("inspect", "decode", "show"):
        reply, _ = decoder.ask(Request(task=task, path=greedy))
        assert reply.code in {Code.UNDECODABLE, Code.TRUNCATED}
        assert "ended its process" not in str(reply.reason)
    decoder.close()


def test_show(phantom: Path, tmp_path: Path) -> None:
    """An image as it is stored comes from a decoder as from here; a file that is none has its code."""
    paths = [*sorted(phantom.rglob("*.dcm"))[:4], tmp_path]
    with DecoderPool(CONFIG, len(paths)) as pool:
        shown = list(pool.answers("show", ((path, 10**5) for path in paths)))
    for path, (reply, image) in zip(paths, shown, strict=True):
        expected_reply, expected = show(path, CONFIG)
        assert reply == expected_reply
        assert (image is None) == (expected is None)
        if image is not None:
            np.testing.assert_array_equal(image, expected)
    assert [reply.code for reply, _ in shown] == [None] * 4 + [Code.UNDECODABLE]
