"""Decoder processes that answer in the order of the questions."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trainer.config import PreprocessingConfig
from trainer.data.decoder import Reply, Request, Task
from trainer.data.mammogram import MAX_PIXELS
from trainer.data.records import Code
from trainer.errors import TrainerError

TIMEOUT_S = 120.0
"""The slowest encoding takes a third of a second for a full-size image; a decoder that needs this long hangs."""
MEMORY_BYTES = 12 * 2**27
"""Of all decoders together: with the process that they decode for they stay below 2 GiB."""
_BASE_BYTES = 48 * 2**20
"""Of a decoder that has not decoded anything."""
BYTES_A_PIXEL = 13
"""That a decoder needs at most beyond that, by measurement of every encoding (JPEG 2000 needs most)."""
_USUAL_PIXELS = 3328 * 2560
_USUAL_BYTES = _BASE_BYTES + BYTES_A_PIXEL * _USUAL_PIXELS
"""What a decoder keeps between two images, if there is room: to have it again, zeroed, takes up to a third of an image's time."""
_NEVER = 2**30
_FILES_A_DECODER = 8
"""Starting a process costs as much as reading about this many headers."""
_PACKAGE_ROOT = str(Path(__file__).parents[2])

Answer = tuple[Reply, NDArray[np.uint8] | None]


class _DecoderDiedError(Exception):
    """The process ended or hung in the middle of an answer; the message says which."""


class Decoder:
    """One decoder process, started when it is first asked, and again after it died."""

    def __init__(
        self, config: PreprocessingConfig, timeout_s: float = TIMEOUT_S, kept_bytes: int = _USUAL_BYTES
    ) -> None:
        self._config = config
        self._timeout_s = timeout_s
        self._kept_bytes = kept_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = bytearray()

    def ask(self, request: Request) -> Answer:
        """
        Return the answer to *request*; a file that kills its decoder, or hangs it, twice is UNDECODABLE.

        Twice, because a machine that is out of memory or of breath for a moment must not decide what an archive is.

        Raises:
            TrainerError: decoders do not work in this installation.
        """
        for _ in range(2):
            process = self._process or self._start()
            try:
                return self._exchange(process, request)
            except (_DecoderDiedError, BrokenPipeError) as error:
                self.close()
                reason = f"decoding ended its process: {error}"
        return Reply(code=Code.UNDECODABLE, reason=reason), None

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # waits, and closes the pipes
            self._process = None
        self._unread.clear()

    def _start(self) -> subprocess.Popen[bytes]:
        """Return a new process that has said that it is ready."""
        search = [_PACKAGE_ROOT, os.environ.get("PYTHONPATH")]  # an empty entry would mean the working directory
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                # -P and the path: this very package, whatever lies in the working directory.
                [
                    *(sys.executable, "-P", "-m", "trainer.data.decoder"),
                    *(self._config.model_dump_json(), str(self._kept_bytes)),
                ],
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(path for path in search if path),
                    # One thread a decoder; those that numpy's library keeps ready would each have memory of their own.
                    "OPENBLAS_NUM_THREADS": "1",
                    # glibc's: the next image finds the memory of the last one.
                    "MALLOC_MMAP_THRESHOLD_": str(_NEVER),
                    "MALLOC_TRIM_THRESHOLD_": str(_NEVER),
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                bufsize=0,
            )
            self._process = process
            try:
                self._read_line(process, time.monotonic() + self._timeout_s)
            except _DecoderDiedError as error:
                self.close()
                complaints.seek(0)
                last = complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise TrainerError(f"image decoders do not work here ({error}): {last}") from error
        return process

    def _exchange(self, process: subprocess.Popen[bytes], request: Request) -> Answer:
        """Ask and read the answer."""
        deadline = time.monotonic() + self._timeout_s
        assert process.stdin is not None  # nosec B101 # noqa: S101  it was asked for
        process.stdin.write(request.model_dump_json().encode() + b"\n")
        reply = Reply.model_validate_json(self._read_line(process, deadline))
        if request.task == "inspect" or reply.code is not None:
            return reply, None
        side = self._config.img_size
        image = np.frombuffer(self._read(process, side * side, deadline), dtype=np.uint8)
        return reply, image.reshape(side, side)

    def _read_line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            self._read_more(process, deadline)
        return self._take(end + 1)

    def _read(self, process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        while len(self._unread) < size:
            self._read_more(process, deadline)
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        return taken

    def _read_more(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Append what the process has written, as soon as there is something."""
        assert process.stdout is not None  # nosec B101 # noqa: S101  it was asked for
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise _DecoderDiedError(f"no answer after {self._timeout_s:g} s")
        data = os.read(process.stdout.fileno(), 2**20)
        if not data:
            raise _DecoderDiedError(f"exit code {process.wait()}")
        self._unread += data


class _Memory:
    """What decoders may have beyond what they have at rest, to be shared out among the images under way."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = size
        self._changed = threading.Condition()

    @contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Hold *size* bytes, or all of them if there are fewer; waits until they are free."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


class DecoderPool:
    """As many decoders as cores, or fewer for few files or little memory."""

    def __init__(self, config: PreprocessingConfig, files: int) -> None:
        fit = MEMORY_BYTES // _USUAL_BYTES
        size = min(len(os.sched_getaffinity(0)), 1 + files // _FILES_A_DECODER, fit)
        # So that there is room for the largest image when all have kept what they may.
        self._kept_bytes = min(_USUAL_BYTES, (MEMORY_BYTES - BYTES_A_PIXEL * MAX_PIXELS) // size)
        self._decoders = [Decoder(config, kept_bytes=self._kept_bytes) for _ in range(size)]
        self._memory = _Memory(MEMORY_BYTES - size * self._kept_bytes)
        self._idle: SimpleQueue[Decoder] = SimpleQueue()
        for decoder in self._decoders:
            self._idle.put(decoder)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="decoder")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Waits for the requests under way, one a decoder, so that none is started behind `close`.
        self._threads.shutdown(wait=True, cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()

    def answers(self, task: Task, files: Iterable[tuple[Path, int]]) -> Iterator[Answer]:
        """
        Yield the answer about each of *files*, in their order, with a few at a time under way or waiting.

        Args:
            task: What is asked about each.
            files: Path, and the bytes of memory that a decoder may need for it.
        """
        ahead = 4 * len(self._decoders)
        under_way: deque[Future[Answer]] = deque()
        for path, needed in files:
            under_way.append(self._threads.submit(self._ask, Request(task=task, path=path), needed))
            if len(under_way) > ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _ask(self, request: Request, needed: int) -> Answer:
        with self._memory.share(max(0, _BASE_BYTES + needed - self._kept_bytes)):
            decoder = self._idle.get()
            try:
                return decoder.ask(request)
            finally:
                self._idle.put(decoder)
