from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from trainer.config import PreprocessingConfig
from trainer.data.decoder import Request, decode, inspect
from trainer.data.decoder_pool import Decoder, DecoderPool
from trainer.data.records import Code
from trainer.errors import TrainerError

CONFIG = PreprocessingConfig(img_size=64)


def test_answers_are_in_order_and_the_same_as_here(phantom: Path, tmp_path: Path) -> None:
    """Decoders answer in the order of the files, with what this process finds in them."""
    (tmp_path / "empty").touch()
    paths = [tmp_path / "empty", *sorted(phantom.rglob("*.dcm"))[:20], tmp_path / "absent"]
    with DecoderPool(CONFIG, len(paths)) as pool:
        inspected = [reply for reply, _ in pool.answers("inspect", paths)]
        decoded = list(pool.answers("decode", paths))
    assert inspected == [inspect(path) for path in paths]
    for path, (reply, image) in zip(paths, decoded, strict=True):
        expected_reply, expected = decode(path, CONFIG)
        assert reply == expected_reply
        assert (image is None) == (expected is None)
        if image is not None:
            np.testing.assert_array_equal(image, expected)
    assert decoded[0][0].code == Code.NOT_IMAGE
    assert decoded[-1][0].code == Code.UNDECODABLE


def test_mutated_files_give_a_code(phantom: Path, tmp_path: Path) -> None:
    """Whatever bytes change and wherever a file ends, it is accepted or refused with a code."""
    random = np.random.default_rng(0)
    sources = {path: path.read_bytes() for path in sorted(phantom.rglob("*.dcm"))[:5]}
    mutated, codes = tmp_path / "mutated.dcm", set()
    decoder = Decoder(CONFIG)
    for number in range(120):
        path = list(sources)[number % len(sources)]
        data = bytearray(sources[path])
        for _ in range(random.integers(1, 20)):
            data[random.integers(len(data) if number % 2 else 1200)] = random.integers(256)
        mutated.write_bytes(data[: random.integers(len(data)) if number % 5 == 0 else None])
        reply, _ = decoder.ask(Request(task="decode", path=mutated))
        codes.add(reply.code)
        if reply.reason is not None and "ended its process" in reply.reason:  # the RLE decoder panics in Rust
            assert dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == RLELossless
    decoder.close()
    assert {None, Code.TRUNCATED, Code.UNDECODABLE} <= codes


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
    os.kill(decoder._process.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert decoder.ask(Request(task="decode", path=good))[0].code == Code.UNDECODABLE
    assert decoder.ask(Request(task="decode", path=good))[1] is not None
    decoder.close()


def test_decoders_that_do_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation is said to be one, and no file is blamed."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(TrainerError, match="image decoders do not work here"):
        Decoder(CONFIG).ask(Request(task="inspect", path=Path("x")))
