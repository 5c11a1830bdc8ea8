"""
A private PostgreSQL for one output folder: started when it is needed, and closed to everybody but its own user.

It listens on a unix socket in a folder of mode 700, and lets in by the kernel's word on who is at the other end (peer
authentication), so there is no password to leak. It outlives the process that started it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

import psycopg2
from filelock import FileLock
from sqlalchemy import URL

from storage.errors import PrivateServerError
from storage.server_home import ServerHome, claim_folder, known_state, prepare_home, user_name

DATABASE = "mammography"
ROLE = "mammography"
PORT = 5432
"""Only part of the socket's name: nothing listens on the network."""
SERVER_TIMEOUT_S = 60
"""How long the server may take to start, to recover, or to stop."""
_LOCK_TIMEOUT_S = 180.0
_STARTS = 5
_RETRY_S = 20.0
"""How long the leftovers of a killed server may take to go."""
_SOCKET_PATH_BYTES = 100
"""A socket's path holds 107 bytes on Linux and 103 on macOS."""
_NOT_YET = ("the database system is", "server closed the connection unexpectedly")
"""What a server answers that is starting, recovering, or shutting down, or of which a killed one's last process answers."""

_SETTINGS = """\
listen_addresses = ''
port = {port}
unix_socket_directories = '{socket_folder}'
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = 64MB
idle_in_transaction_session_timeout = 10s
timezone = 'UTC'
log_timezone = 'UTC'
log_min_error_statement = panic
log_error_verbosity = terse
"""
"""The last two: statements, and the rows that an error shows, name patients and images, which are no business of a log."""


class PrivateServer:
    """The private server of one output folder. Processes that start it at once get one server."""

    def __init__(self, outputs: Path) -> None:
        self.folder: Path = outputs.absolute() / ".postgresql"
        """In the output folder, mode 700: data, log and socket; for root, a mark that says where they are."""

    @property
    def url(self) -> URL:
        """Where the database is. Raises PrivateServerError where root has not started the server yet."""
        state = known_state(self.folder)
        if state is None:
            raise PrivateServerError(f"the private server of {self.folder.parent} has not been started yet")
        return URL.create(
            "postgresql+psycopg2",
            username=ROLE,
            database=DATABASE,
            query={"host": str(_socket_folder(state)), "port": str(PORT)},
        )

    def running(self) -> bool:
        """Return whether the server listens. Raises PrivateServerError where the folder is another user's."""
        state = known_state(self.folder)
        return state is not None and _listens(_socket_folder(state))

    def start(self) -> None:
        """
        Let the server run and answer; where it does, nothing changes. The first time, make its data.

        Raises:
            PrivateServerError: It does not start; one line with the last word of its log.
        """
        try:
            claim_folder(self.folder)
            with FileLock(self.folder / "lock", timeout=_LOCK_TIMEOUT_S):
                for _ in range(_STARTS):  # what listened may have been a killed one's last moment
                    if not self.running():
                        self._start()
                    if _await_answer(self.url):
                        return
        except OSError as error:
            raise PrivateServerError(f"the private server of {self.folder.parent} does not start: {error}") from error
        raise PrivateServerError(f"the private server of {self.folder.parent} starts and is gone again")

    def stop(self) -> None:
        """Let the server end; sessions are cut off, what they committed is kept. Raises PrivateServerError."""
        if not self.running():
            return
        try:
            with FileLock(self.folder / "lock", timeout=_LOCK_TIMEOUT_S):
                home = prepare_home(self.folder)
                if self.running():
                    result = home.run("pg_ctl", "stop", "-D", "data", "-m", "fast", "-w", "-t", str(SERVER_TIMEOUT_S))
                    if result.returncode != 0:
                        raise PrivateServerError(f"the private server does not stop: {_telling_line(result.stderr)}")
        except OSError as error:
            raise PrivateServerError(f"the private server of {self.folder.parent} does not stop: {error}") from error

    def _start(self) -> None:
        home = prepare_home(self.folder)
        if not (home.state / "data").exists():
            _make_data(home)
        _refuse_foreign_machine(self.folder / "machine", home.state / "data" / "postmaster.pid")
        _configure(home)
        _start_postmaster(home)


def _make_data(home: ServerHome) -> None:
    """Make the data folder with an empty database in it: whole, or not at all."""
    new = home.state / "data.new"
    shutil.rmtree(new, ignore_errors=True)  # of a process that died here
    commands = (
        [
            "initdb",
            "-D",
            new.name,
            "-U",
            ROLE,
            "--auth-local=peer",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--no-locale",
        ],
        ["postgres", "--single", "-c", "exit_on_error=on", "-D", new.name, "postgres"],
        ["/bin/sh", "-c", 'echo "include \'mammography.conf\'" >> "$0/postgresql.conf"', new.name],
    )
    for command in commands:
        result = home.run(*command, text=f"create database {DATABASE}\n" if command[0] == "postgres" else "")
        if result.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise PrivateServerError(f"the private server's data cannot be made: {_telling_line(result.stderr)}")
    new.rename(home.state / "data")


def _configure(home: ServerHome) -> None:
    """Write the server's settings and who may log in: nobody but the user of this process."""
    folder = _choose_socket_folder(home.state)
    if folder.parent == home.state:
        made = home.run("/bin/mkdir", "-p", "-m", "700", folder.name)
        if made.returncode != 0:
            raise PrivateServerError(f"the socket's folder cannot be made: {_telling_line(made.stderr)}")
    else:
        claim_folder(folder)
    owner = user_name().replace('"', '""')
    files = {
        "mammography.conf": _SETTINGS.format(port=PORT, socket_folder=folder),
        "pg_hba.conf": f"local all {ROLE} peer map=owner\n",
        "pg_ident.conf": f'owner "{owner}" {ROLE}\n',
    }
    for name, text in files.items():
        # By the server's account, not by root: whoever owns a folder could point root's writing elsewhere.
        written = home.run("/bin/sh", "-c", 'cat > "data/$0"', name, text=text)
        if written.returncode != 0:
            raise PrivateServerError(f"the private server's {name} cannot be written: {_telling_line(written.stderr)}")


def _start_postmaster(home: ServerHome) -> None:
    """Start the server and wait for it, also over what a killed one left behind."""
    log = home.state / "log"
    deadline = time.monotonic() + _RETRY_S
    while True:
        _remove_stale_pid_file(home.state / "data")
        before = log.stat().st_size if log.exists() else 0
        # Paths relative to the state folder: pg_ctl hands them to a shell.
        result = home.run("pg_ctl", "start", "-D", "data", "-l", "log", "-w", "-t", str(SERVER_TIMEOUT_S))
        if result.returncode == 0 or _listens(_socket_folder(home.state)):
            return
        said = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
        # The sessions of a killed server live until their statement ends, and keep its shared memory.
        passing = "shared memory block" in said or "lock file" in said
        if not passing or time.monotonic() > deadline:
            raise PrivateServerError(
                f"the private server does not start: {_telling_line(said or result.stderr)} ({log})"
            )
        time.sleep(0.5)


def _await_answer(url: URL) -> bool:
    """Wait until the server lets us in: it may still be recovering. Return False if it does not even listen any more."""
    deadline = time.monotonic() + SERVER_TIMEOUT_S
    while True:
        try:
            psycopg2.connect(
                host=url.query["host"], port=PORT, user=ROLE, dbname=DATABASE, connect_timeout=SERVER_TIMEOUT_S
            ).close()
        except psycopg2.OperationalError as error:
            if not _listens(Path(str(url.query["host"]))):
                return False
            if not any(each in str(error) for each in _NOT_YET) or time.monotonic() > deadline:
                raise PrivateServerError(f"the private server does not answer: {_telling_line(str(error))}") from error
            time.sleep(0.1)
        else:
            return True


def _remove_stale_pid_file(data: Path) -> None:
    """
    Remove the lock file of a server that is gone and whose process number is another program's by now.

    PostgreSQL sees by itself that a number is nobody's; after a reboot, or in a new container, it is often somebody's.
    """
    pid_file = data / "postmaster.pid"
    try:
        process = Path("/proc", pid_file.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip())
        stale = process.is_dir() and not _is_server(process, data)
    except FileNotFoundError:  # there is no lock, or the process ended while we looked at it
        return
    if stale:
        pid_file.unlink(missing_ok=True)


def _is_server(process: Path, data: Path) -> bool:
    """Return whether a process, given by its folder below /proc, is the server of *data*. Raises FileNotFoundError."""
    try:
        return (process / "cwd").samefile(data)  # a server works in its data folder
    except PermissionError:
        return (process / "comm").read_text(encoding="utf-8").strip() == "postgres"


def _refuse_foreign_machine(mark: Path, pid_file: Path) -> None:
    """
    Write down which machine the server runs on; refuse where its lock says that it runs on another one.

    On a shared file system the lock's process number means nothing here, and two servers on one folder destroy it.
    A new name on the same boot is a container, a new boot under the same name is a restart.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    here = (socket.gethostname(), boot_id.read_text(encoding="ascii").strip() if boot_id.exists() else "")
    if mark.exists() and pid_file.exists():
        there = mark.read_text(encoding="utf-8").split()
        if not set(here) & set(there):
            raise PrivateServerError(
                f"the private server runs on {there[0]}, or died there; workers on several machines need --database; "
                f"if nothing of it runs any more, remove {mark}"
            )
    mark.write_text("\n".join(here) + "\n", encoding="utf-8")


def _choose_socket_folder(state: Path) -> Path:
    """Return the folder for the socket: in the state folder, or a short one of our own where that path would not do."""
    name = f"mammography-{os.geteuid()}-{hashlib.sha256(os.fsencode(state)).hexdigest()[:12]}"
    for folder in (state / "socket", Path(tempfile.gettempdir(), name), Path("/tmp", name)):  # nosec # noqa: S108 - mode 700, owner checked
        path = os.fsencode(folder / f".s.PGSQL.{PORT}")
        # A comma separates several hosts for the driver; quotes and backslashes mean something in the settings.
        if len(path) <= _SOCKET_PATH_BYTES and re.fullmatch(rb"[\w/.+@ -]+", path):
            return folder
    raise PrivateServerError(f"there is no short path for the socket of {state}")


def _socket_folder(state: Path) -> Path:
    """Return the folder of the socket: the running server's, else the one that a server would get."""
    chosen = _choose_socket_folder(state)
    pid_file = state / "data" / "postmaster.pid"
    if _listens(chosen) or not pid_file.exists():
        return chosen
    # It may have been started under another TMPDIR. Line 5 is the socket's folder.
    lines = pid_file.read_text(encoding="utf-8", errors="replace").splitlines()
    recorded = Path(lines[4]) if len(lines) > 4 and lines[4] else chosen  # noqa: PLR2004
    return recorded if _listens(recorded) else chosen


def _listens(folder: Path) -> bool:
    """Return whether a server listens on the socket in *folder*: the kernel's word, not a process number's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(os.fspath(folder / f".s.PGSQL.{PORT}"))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
    return True


def _telling_line(text: str) -> str:
    """Return the one line of a log or of an error that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    return next((line for line in reversed(lines) if re.search(r"FATAL|PANIC|ERROR|error:", line)), lines[-1])
