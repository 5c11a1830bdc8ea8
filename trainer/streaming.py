"""Batches that are read while the device computes, where the decoded array does not fit there or is not kept."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from trainer.batches import Batch, Bounds, Indices, Source, forget_uploaded, images_on
from trainer.data.records import Dataset
from trainer.errors import DataError, TrainerError
from trainer.loading import Loading
from trainer.readers import Unreadable, WholeBatches, as_read, begin_reading, reader_of

_UNTIL_DEAD_S = 5.0
"""A process that broke off in the middle of an answer is gone within this time."""


@contextmanager
def open_source(dataset: Dataset, device: torch.device, loading: Loading) -> Iterator[Source]:
    """Give the batches of *dataset* on *device* as *loading* says; processes that read ahead end with the block."""
    if not loading.streamed:
        yield images_on(dataset, device)
        return
    if device.type == "cuda":
        forget_uploaded()
    with closing(StreamedImages(dataset, device, loading)) as source:
        yield source


class _Plan:
    """The batches of a pass, as indices: replaced for each, since torch's loader keeps its sampler for good."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class StreamedImages:
    """
    Images that are read batch by batch, by processes of their own or by this one; labels and features lie on the device.

    The batches are those of `Images`, to the bit, whoever reads them. One pass at a time. Made of torch's loader, so that the
    three numbers of *loading* mean what they mean there.
    """

    def __init__(self, dataset: Dataset, device: torch.device, loading: Loading) -> None:
        self._device = device
        self._loading = loading
        self._labels = torch.from_numpy(dataset.labels).to(device)
        self._features = None if dataset.features is None else torch.from_numpy(dataset.features).to(device)
        self._images = WholeBatches(reader_of(dataset.images))
        self._plan = _Plan()
        self._loader = self._new_loader()
        self._pass: Any = None
        """The latest, or with persistent processes the only one: torch's own iterator."""

    def batches(self, order: Indices, bounds: Bounds) -> Iterator[Batch]:
        """
        Yield the images at ``order[begin:end]`` for each of *bounds*.

        Raises:
            DataError: an image cannot be read any more.
            TrainerError: a process that reads ahead has died.
        """
        indices = torch.from_numpy(order).to(self._device)
        with self._reading([order[begin:end].tolist() for begin, end in bounds]) as parts:
            for (begin, end), part in zip(bounds, parts, strict=True):
                if isinstance(part, Unreadable):
                    raise DataError(part.reason)
                yield self._batch(part, indices[begin:end])

    def close(self) -> None:
        """End the processes, if there are any; a later pass starts others."""
        self._end(self._pass)

    def _batch(self, images: Tensor, indices: Tensor) -> Batch:
        """Return *images* (B, H, W) on the device, with what is known of those at *indices* (B,)."""
        return Batch(
            images.to(self._device, non_blocking=True).unsqueeze(1),
            self._labels.index_select(0, indices),
            None if self._features is None else self._features.index_select(0, indices),
        )

    @contextmanager
    def _reading(self, batches: list[list[int]]) -> Iterator[Iterator[Tensor | Unreadable]]:
        """Give what is read of *batches*, in order. Only persistent processes outlive the block, and no failure."""
        self._plan.batches = batches
        keep = False
        current = self._pass if self._loading.persistent_workers else None
        try:
            current = self._pass = iter(self._loader)  # persistent processes drop what is left of an earlier pass
            yield current
            keep = self._loading.persistent_workers
        except GeneratorExit:  # whoever took the batches has left early
            keep = self._loading.persistent_workers
            raise
        except (EOFError, OSError) as error:  # broken off in the middle of an answer, or never begun
            if self._loading.num_workers == 0:
                raise
            raise _broken_off(_deaths(current, _UNTIL_DEAD_S) or [repr(error)]) from error
        except RuntimeError as error:
            deaths = _deaths(current, 0)
            if not deaths:  # an error like any other, of a process or of ours
                raise
            raise _broken_off(deaths) from error
        finally:
            if not keep:
                self._end(current)

    def _new_loader(self) -> DataLoader[Tensor | Unreadable]:
        """Return a loader; its processes start with the first pass."""
        context = None
        if self._loading.num_workers > 0:
            # Of the ways to start a process the one that is safe beside CUDA, threads and connections to a database, and
            # cheap from the second process on: all are forked from one that has loaded what they need.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([WholeBatches.__module__])
        return DataLoader(
            self._images,
            batch_sampler=self._plan,
            num_workers=self._loading.num_workers,
            prefetch_factor=self._loading.prefetch_factor,
            persistent_workers=self._loading.persistent_workers,
            collate_fn=as_read,
            pin_memory=self._device.type == "cuda",
            multiprocessing_context=context,
            worker_init_fn=begin_reading,
            generator=torch.Generator(),  # else every pass draws from the generator that dropout draws from
        )

    def _end(self, a_pass: Any) -> None:
        """End the processes of *a_pass*, also while the traceback of an error keeps it alive."""
        if self._loading.num_workers > 0 and a_pass is not None:
            a_pass._shutdown_workers()  # noqa: SLF001 - torch does this when the object goes, and has no other name for it
            for process in _processes(a_pass):
                if process.is_alive():  # busy for longer than torch waits, and deaf to SIGTERM where we wait for it
                    process.kill()
                    process.join()
        if self._loading.persistent_workers:
            self._pass, self._loader = None, self._new_loader()  # the old one would go on with what is gone


def _processes(a_pass: Any) -> list[BaseProcess]:
    """Return the processes that read for *a_pass*; none where this process reads itself, or has not begun."""
    processes: list[BaseProcess] = getattr(a_pass, "_workers", [])
    return processes


def _broken_off(reasons: list[str]) -> TrainerError:
    """Return the error that says why reading ahead ended, in one line."""
    return TrainerError(
        f"reading ahead broke off: {', '.join(reasons)}; is there too little memory, or room in /dev/shm?"
    )


def _deaths(a_pass: Any, wait_s: float) -> list[str]:
    """Return which processes of *a_pass* are gone, and how they ended; wait a moment for the first."""
    processes = _processes(a_pass)
    connection.wait([process.sentinel for process in processes], wait_s)
    return [
        f"process {process.pid} {_ending(process.exitcode)}" for process in processes if process.exitcode is not None
    ]


def _ending(exit_code: int) -> str:
    """Return how a process with *exit_code* ended."""
    if exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"
