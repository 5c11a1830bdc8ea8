"""
A process that reads files for another one: `python -m trainer.data.decoder PREPROCESSING KEPT_BYTES`.

It writes an empty `Reply` when it is ready, then takes one `Request` a line on standard input and answers with one `Reply`
a line on standard output, an accepted image's bytes behind it. A process of its own, and not a child of multiprocessing,
which would import the main script with its torch again; and what a decoder in C does to its process costs the file and not
the build.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from trainer import heap
from trainer.config import PreprocessingConfig, Strict
from trainer.data.image_file import read_header, read_mammogram
from trainer.data.mammogram import Header, RejectedError
from trainer.data.preprocess import preprocess, without_preprocessing
from trainer.data.records import Code

Task = Literal["inspect", "decode", "show"]

MAX_OWN_BYTES = 2**30
"""Memory that a decoder may take beyond what it starts with: more than an image of `MAX_PIXELS` needs in any encoding."""


class Request(Strict):
    """What is asked: to inspect a file (hash and header), to decode it, or to show it as it is before that."""

    task: Task
    path: Path


class Reply(Strict):
    """The answer; behind that to an accepted `decode` or `show` come img_size * img_size bytes."""

    sha256: str | None = None
    """Of the file's bytes, where it was inspected."""
    read_ns: int = 0
    """When it began to be read, in nanoseconds since 1970, where it was inspected."""
    header: Header | None = None
    """Where it was inspected and accepted."""
    fingerprint: str | None = None
    """Of the stored pixels, where they were decoded and accepted."""
    code: Code | None = None
    """Why the file is not used; None if it is."""
    reason: str | None = None


def inspect(path: Path) -> Reply:
    """Return the hash of *path* and what its header says."""
    read_ns = time.time_ns()
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return Reply(code=Code.UNDECODABLE, reason=f"cannot be read: {error.strerror}")
    try:
        return Reply(sha256=sha256, read_ns=read_ns, header=read_header(path))
    except RejectedError as rejected:
        return Reply(sha256=sha256, read_ns=read_ns, code=rejected.code, reason=rejected.reason)


def decode(path: Path, config: PreprocessingConfig) -> tuple[Reply, NDArray[np.uint8] | None]:
    """Return the (img_size, img_size) image of *path*, or why there is none."""
    try:
        mammogram = read_mammogram(path, apply_window=config.apply_window)
        return Reply(fingerprint=mammogram.fingerprint()), preprocess(mammogram, config)
    except RejectedError as rejected:
        return Reply(code=rejected.code, reason=rejected.reason), None


def show(path: Path, config: PreprocessingConfig) -> tuple[Reply, NDArray[np.uint8] | None]:
    """Return the (img_size, img_size) image of *path* as its stored values are, or why there is none."""
    try:
        return Reply(), without_preprocessing(read_mammogram(path, apply_window=False), config)
    except RejectedError as rejected:
        return Reply(code=rejected.code, reason=rejected.reason), None


def serve(requests: BinaryIO, replies: BinaryIO, config: PreprocessingConfig, kept_bytes: int) -> None:
    """Answer *requests* until there are no more, and keep at most *kept_bytes* of memory between them."""
    process = psutil.Process()
    _write(replies, Reply())
    for line in requests:
        request = Request.model_validate_json(line)
        if request.task == "inspect":
            _write(replies, inspect(request.path))
        else:
            answer = (decode if request.task == "decode" else show)(request.path, config)
            memory = process.memory_info()
            if memory.rss - memory.shared > kept_bytes:
                heap.give_back()
            _write(replies, *answer)


def _write(replies: BinaryIO, reply: Reply, image: NDArray[np.uint8] | None = None) -> None:
    """Write *reply* and the bytes of *image* at once."""
    replies.write(reply.model_dump_json().encode() + b"\n" + (b"" if image is None else image.tobytes()))
    replies.flush()


def _main() -> None:
    """Serve on standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the end of the input ends this one
    cv2.setNumThreads(1)  # there are as many decoders as cores
    # The last line of defence against a stream that asks for more than its header promised: the decoder then fails, or dies.
    limit = psutil.Process().memory_info().data + MAX_OWN_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # Decoders written in C print; what they print must not land between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, replies, PreprocessingConfig.model_validate_json(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    _main()
