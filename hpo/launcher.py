"""One worker process per GPU slot, watched: what dies is started again, signals are passed on, the end is awaited."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from hpo.live import live_status, opening_progress
from hpo.settings import Settings, allowed_gpus, child_environment, mps_pipes
from hpo.signals import Leave
from hpo.status import Status, is_over, status, worker_name
from hpo.study import DataPlace, Study, open_data
from storage import ledger
from storage.errors import DatabaseUnavailableError
from storage.heartbeat import GRACE_S, HEARTBEAT_S
from storage.patience import Patience
from storage.tree import OutputTree

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LONGEST_DELAY_S = 60.0
_FRUITLESS_STARTS = 5
_CORES_PER_CPU_WORKER = 4
_FAREWELL_S = 20.0
"""How long workers may take to leave by themselves once the study is over: they complete the last folders."""
_OBEY_S = 9.5
"""How long workers may take to leave when they are asked to; they promise seven."""
_OBEYED = {0, -signal.SIGTERM}
"""Exit codes of a worker that was asked to stop; the second one's, when it had not begun to listen, nor to work."""


@dataclass(frozen=True)
class Slot:
    """A place for one worker process."""

    index: int
    cuda_device: str | None
    """What CUDA_VISIBLE_DEVICES says in the process; None leaves it alone."""
    threads: int
    sharing: int = 1
    """Workers of this launcher on the same GPU, this one among them."""


@dataclass
class Watched:
    """A slot with the process that runs in it."""

    slot: Slot
    process: subprocess.Popen[bytes] | None = None
    start_again_at: float = 0.0
    fruitless: int = 0
    """Starts in a row that ended before the process had finished an epoch."""
    errors: int = 0
    """Of these, those that ended by themselves, in an error: being killed says nothing of the process."""
    asked: bool = False
    """Whether the process was asked to stop: a second time would mean at once."""
    advanced: bool = False
    """Whether the process has finished an epoch."""
    exit_code: int | None = None
    """Set once the slot needs no process any more."""


def visible_gpus(allowed: list[str] | None) -> list[str]:
    """
    Return the GPUs of this machine by index, without loading torch; none where there is no driver.

    Of those only the *allowed* ones, as CUDA_VISIBLE_DEVICES would call them; None allows all.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    listed = subprocess.run(
        [program, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False, timeout=60
    )
    gpus = listed.stdout.split() if listed.returncode == 0 else []
    return gpus if allowed is None or not gpus else allowed


def plan(workers: int | None, per_gpu: int, gpus: Sequence[str], cores: int) -> list[Slot]:
    """
    Return the slots for *workers* processes; None means as many as fit.

    Args:
        workers: Processes wanted.
        per_gpu: Processes that share a GPU.
        gpus: GPUs by index; empty for a machine without.
        cores: Processor cores that the workers share.
    """
    fitting = len(gpus) * per_gpu if gpus else max(1, cores // _CORES_PER_CPU_WORKER)
    count = workers or fitting
    threads = max(1, cores // count)
    if not gpus:
        return [Slot(index, None, threads) for index in range(count)]
    sharing = [len(range(place, count, len(gpus))) for place in range(len(gpus))]
    places = [index % len(gpus) for index in range(count)]
    return [Slot(index, gpus[place], threads, sharing[place]) for index, place in enumerate(places)]


@dataclass
class Launcher:
    """Runs the workers of one study on this machine until the study is over or `stop` is set."""

    command: Sequence[str]
    """Of a worker, without what differs by slot."""
    slots: Sequence[Slot]
    settings: Settings
    log_folder: Path
    look: Callable[[], Status]
    show: Callable[[Status], None]
    repair: Callable[[], None]
    """Frees what dead workers hold, also when nobody else is there to do it."""
    stop: threading.Event
    first_delay_s: float = 1.0
    """Before a worker that died is started again; it doubles with every fruitless start."""
    _watched: list[Watched] = field(default_factory=list)

    def run(self) -> int:
        """Return the exit code: 0 when the study is over or the stop was obeyed, 2 for wrong input, else 1."""
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self._watched = [Watched(slot) for slot in self.slots]
        try:
            self._watch()
        except DatabaseUnavailableError:
            if not self.stop.is_set():  # else it was asked to stop while it waited for the database
                raise
        finally:  # whatever ended the watch, nobody is left behind
            codes = self._wind_down()
        if self.stop.is_set():
            return 0 if all(code in _OBEYED for code in codes) else 1
        final = self.look()
        self.show(final)
        if is_over(final):
            return 0
        logger.error("all workers ended, and the study is not finished", extra={"action": "unfinished"})
        return max([1, *(watched.exit_code or 0 for watched in self._watched)])

    def _watch(self) -> None:
        """Keep a process in every slot until none needs one any more, the study is over, or `stop` is set."""
        looked_at = repaired_at = 0.0
        current = self.look()
        over_at: float | None = None
        while not self.stop.is_set() and any(watched.exit_code is None for watched in self._watched):
            if time.monotonic() - looked_at > 2 * _POLL_S:
                current, looked_at = self.look(), time.monotonic()
                self.show(current)
                over_at = (over_at or looked_at) if is_over(current) else None
            if over_at is not None and time.monotonic() > over_at + _FAREWELL_S:
                return
            if time.monotonic() - repaired_at > HEARTBEAT_S:
                self.repair()
                repaired_at = time.monotonic()
            for watched in self._watched:
                self._tend(watched, current)
            self.stop.wait(_POLL_S)

    def _tend(self, watched: Watched, current: Status) -> None:
        """Start the slot's process if it is time, and draw the conclusion if it ended."""
        if watched.exit_code is not None:
            return
        if watched.process is None:
            if time.monotonic() >= watched.start_again_at:
                watched.process, watched.advanced, watched.asked = self._start(watched.slot), False, False
            return
        code = watched.process.poll()
        latest = current if code is None else self.look()  # a killed worker's claim still says how far it came
        watched.advanced = watched.advanced or _finished_an_epoch(watched.process, latest)
        if code is None:
            return
        watched.process = None
        if code in {0, 2}:  # 2: wrong input stays wrong
            watched.exit_code = code
            return
        watched.fruitless = 0 if watched.advanced else watched.fruitless + 1
        watched.errors = 0 if watched.advanced else watched.errors + (code > 0)
        last_words = self._last_words(watched.slot)
        if watched.errors >= _FRUITLESS_STARTS:
            watched.exit_code = 1
            logger.error("worker %d given up: %s", watched.slot.index, last_words, extra={"action": "worker_given_up"})
            return
        delay_s = min(self.first_delay_s * 2**watched.fruitless, _LONGEST_DELAY_S)
        watched.start_again_at = time.monotonic() + delay_s
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        logger.warning(
            "worker %d ended (%s), again in %.0f s: %s",
            watched.slot.index, how, delay_s, last_words, extra={"action": "worker_restarted"},
        )  # fmt: skip

    def _start(self, slot: Slot) -> subprocess.Popen[bytes]:
        with self._log(slot).open("ab") as log:
            return subprocess.Popen(
                [*self.command, "--threads", str(slot.threads), "--per-gpu", str(slot.sharing)],
                env=child_environment(self.settings, cuda_device=slot.cuda_device, threads=slot.threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal reaches the launcher alone, which passes it on
                # The launcher waits for signals in a thread with these blocked; a child must not inherit that.
                preexec_fn=_unblock_signals,  # noqa: PLW1509 - async-signal-safe: one system call
            )

    def _log(self, slot: Slot) -> Path:
        # Other machines, and other containers of this one, may start workers on the same folder.
        return self.log_folder / f"{socket.gethostname()}_{slot.index}.log"

    def _last_words(self, slot: Slot) -> str:
        lines = self._log(slot).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _wind_down(self) -> list[int]:
        """Ask the workers that still run to stop, and return their exit codes: they save and give their trials back."""
        self.ask()
        deadline = time.monotonic() + _OBEY_S
        running = [watched.process for watched in self._watched if watched.process is not None]
        return [_wait_or_kill(process, deadline) for process in running]

    def ask(self) -> None:
        """Ask the workers that still run to stop, each once. Also for another thread, while this one waits for the database."""
        for watched in self._watched:
            if watched.process is not None and not watched.asked:
                watched.asked = True
                watched.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the workers that still run at once. For another thread, at a second signal."""
        for watched in self._watched:
            if watched.process is not None and watched.process.poll() is None:
                watched.process.kill()


def _wait_or_kill(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Return the exit code of a process that was asked to leave; one that is frozen does not hear it, and is killed."""
    try:
        return process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _finished_an_epoch(process: subprocess.Popen[bytes], current: Status) -> bool:
    name = worker_name(process.pid)
    return any(worker.name == name and worker.epoch is not None for worker in current.workers)


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))


def launch(
    study: Study,
    tree: OutputTree,
    settings: Settings,
    console: Console,
    *,
    stop: threading.Event,
    leave: Leave,
    workers: int | None,
    per_gpu: int,
    patience_s: float,
    csv: Path | None,
    dicom_root: Path | None,
    log_options: Sequence[str],
) -> int:
    """
    Run *workers* processes on *study* until it is finished, and return the exit code.

    The data are opened here first: what is wrong with them is said once, and the workers find them decoded.

    Raises:
        StopRequestedError: Asked to stop before the workers were started.
    """
    place = DataPlace.choose(study.file, tree, csv=csv, dicom_root=dicom_root, stop=stop)
    with opening_progress(console) as progress:
        open_data(study, place, progress)
    places = ["--csv", str(place.csv.absolute()), "--dicom-root", str(place.dicom_root.absolute())]
    slots = plan(workers, per_gpu, visible_gpus(allowed_gpus()), len(os.sched_getaffinity(0)))
    logger.info(
        "%d workers, %s, %d threads each",
        len(slots),
        "CPU"
        if slots[0].cuda_device is None
        else f"GPUs {', '.join(sorted({slot.cuda_device or '' for slot in slots}))}",
        slots[0].threads,
        extra={"action": "launching", "study": study.name},
    )
    sharing = max(slot.sharing for slot in slots)
    if sharing > 1:
        how = "through MPS" if mps_pipes().exists() else "in turns: nvidia-cuda-mps-control is not running"
        logger.info("%d workers share a GPU, %s", sharing, how, extra={"action": "sharing", "study": study.name})
    patience = Patience(patience_s, stop)
    options = [*places, "--patience", str(patience_s), *log_options]
    with live_status(console) as show:
        launcher = Launcher(
            command=[sys.executable, "-P", "-m", "hpo.cli", "worker", study.name, *options],
            slots=slots,
            settings=settings,
            log_folder=study.folder.path / "workers",
            look=lambda: patience.call(status, study),
            show=show,
            repair=lambda: _repair(study, patience),
            stop=stop,
        )
        leave.first, leave.second = launcher.ask, launcher.kill
        return launcher.run()


def _repair(study: Study, patience: Patience) -> None:
    """Free what dead workers hold, unless this process was cut off a moment ago itself, as they may have been."""
    if patience.undisturbed_for(GRACE_S):
        patience.call(ledger.repair, study.storage.engine, study.registration.study_id, GRACE_S)
