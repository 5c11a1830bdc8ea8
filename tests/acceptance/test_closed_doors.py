"""
Closed doors: a password that is given stays where it was given, nothing listens beyond this machine, no file is for everybody.

The database is a real PostgreSQL that listens on TCP and asks for a password, as a lab's server does.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote

import psutil
import pytest

from storage.database import open_database
from storage.private_server import PrivateServer
from storage.server_home import ServerHome, prepare_home
from tests.chaos import wait_until, workers_of
from tests.conftest import remove_server
from tests.laboratory import STUDY, Laboratory

USER, DATABASE = "searcher", "postgres"
ONE_TRIAL = STUDY.replace("folds: 3", "folds: 2").replace("epochs: 2", "epochs: 1").replace("trials: 4", "trials: 1")


@dataclass(frozen=True)
class LabServer:
    """A PostgreSQL on TCP with a password."""

    home: ServerHome
    port: int
    word: str
    """The part of the password that is the same however it is written: found anywhere, the password is there."""

    @property
    def password(self) -> str:
        """With characters that a URL must write otherwise, and that trip those who put texts together."""
        return f"{{a}}%/{self.word}#?&"

    @property
    def url(self) -> str:
        """Where the database is, with the password."""
        return f"postgresql://{USER}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Let it listen on loopback."""
        settings = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        started = self.home.run("pg_ctl", "start", "-D", "data", "-l", "log", "-w", "-o", settings)
        assert started.returncode == 0, started.stderr

    def stop(self) -> None:
        """End it at once, sessions and all."""
        self.home.run("pg_ctl", "stop", "-D", "data", "-w", "-m", "immediate")

    def do(self, sql: str, url: str | None = None) -> None:
        """Do something in its database, or in the one at *url*."""
        engine = open_database(url or self.url, application_name="test")
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql(sql)
        engine.dispose()


@pytest.fixture(scope="module")
def lab_server() -> Iterator[LabServer]:
    """The server, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mcd-"))
    mark = PrivateServer(folder)
    home = prepare_home(mark.folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = LabServer(home, port, f"Zitronenfalter{secrets.token_hex(4)}")
    home.run("/bin/sh", "-c", "cat > word", text=server.password)
    ways = ["--auth-local=reject", "--auth-host=scram-sha-256", "--pwfile=word"]
    made = home.run("initdb", "-D", "data", "-U", USER, "--encoding=UTF8", "--no-locale", *ways)
    assert made.returncode == 0, made.stderr
    (home.state / "word").unlink()
    server.start()
    yield server
    server.stop()
    remove_server(mark)
    folder.rmdir()


def family(*processes: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes with all that they have started."""
    roots = [psutil.Process(process.pid) for process in processes]
    return [each for root in roots for each in (root, *root.children(recursive=True))]


def listening(processes: list[psutil.Process]) -> set[str]:
    """Return the addresses on which *processes* listen."""
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    return {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}


def shown_of_all_processes() -> str:
    """Return what anybody on this machine sees of all its processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return "\n".join(lines)


def holding(folder: Path, word: str) -> list[Path]:
    """Return the files in *folder* and below it in which *word* is, in their names too."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if word in path.name or word.encode() in path.read_bytes()]


def address(process: subprocess.Popen[str]) -> str:
    """Return the address that a server prints once it listens."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://[\w.:]+", line):
            return found[0]
    raise AssertionError("it ended without an address")


def answer(url: str) -> str:
    """Return what *url* answers, an error's page too; nothing where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - of our own servers
            return str(response.read().decode())
    except HTTPError as error:
        return error.read().decode()
    except URLError:
        return ""


def test_a_password_stays_where_it_was_given(laboratory: Laboratory, lab_server: LabServer) -> None:
    """A search with everything around it, and the end of its database, tell the password to no list, log, file or table."""
    everywhere = ("--database", lab_server.url, "--log-level", "debug")
    (laboratory.folder / "study.yaml").write_text(ONE_TRIAL)
    said = [laboratory.ok("study", "create", "study.yaml", *laboratory.data, *everywhere)]
    launcher = laboratory.start("launch", "small", "--workers", "1", *everywhere, "--log-format", "json")
    servers = [laboratory.start(*what, "--port", "0", *everywhere) for what in (("metrics", "small"), ("dashboard",))]
    urls = [address(server) for server in servers]
    wait_until(lambda: workers_of(launcher))

    shown = shown_of_all_processes()
    assert f"{USER}:***@127.0.0.1:{lab_server.port}/{DATABASE}" in shown
    assert lab_server.word not in shown
    assert listening(family(launcher, *servers)) == {"127.0.0.1"}
    said += launcher.communicate(timeout=280)
    assert launcher.returncode == 0, said[-1]
    said += [answer(f"{urls[0]}/metrics"), answer(urls[1])]
    assert 'mammography_up{study="small"} 1.0' in said[-2]
    asking = (("study", "status", "small"), ("study", "best", "small", "--json"), ("db", "status"), ("db", "url"))
    for asked in [laboratory.start(*command, *everywhere) for command in asking]:
        said += asked.communicate(timeout=60)
        assert asked.returncode == 0, said[-1]

    lab_server.stop()
    try:
        said += [answer(f"{urls[0]}/metrics"), answer(f"{urls[1]}/dashboard"), answer(f"{urls[1]}/api/studies")]
        gone = laboratory.run("worker", "small", "--patience", "0", *everywhere)
        assert (gone.code, len(gone.err.splitlines())) == (1, 1), gone.err
    finally:
        lab_server.start()
    for server in servers:
        server.send_signal(signal.SIGTERM)
        said += server.communicate(timeout=30)
    assert not [text for text in (*said, gone.out, gone.err) if lab_server.word in text]
    assert holding(laboratory.outputs, lab_server.word) == []
    assert holding(lab_server.home.state, lab_server.word) == []
    assert len(holding(laboratory.outputs, "small")) > 3


@pytest.mark.parametrize("command", [("study", "list"), ("db", "status"), ("worker", "small", "--patience", "0")])
def test_a_door_that_does_not_open_tells_no_password(
    laboratory: Laboratory, lab_server: LabServer, command: tuple[str, ...]
) -> None:
    """A wrong password, host, port, database or text in place of a URL: one line, without it."""
    right, word = lab_server.url, lab_server.word
    wrong = {
        right.replace(quote("#?&"), ""): 1,
        right.replace("127.0.0.1", "nowhere.invalid"): 1,
        right.replace(str(lab_server.port), "1"): 1,
        right.replace(f"/{DATABASE}", "/nothing"): 1,
        right.replace("%2F", "@"): 2,
        f"{right}?pasword={word}": 2,
        f"host=127.0.0.1 password={word}": 2,
    }
    started = {url: laboratory.start(*command, "--log-level", "debug", "--database", url) for url in wrong}
    for url, process in started.items():
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, len(err.splitlines())) == (wrong[url], "", 1), (url, err)
        assert word not in err


def test_a_defect_of_ours_shows_no_password_and_no_data(laboratory: Laboratory, lab_server: LabServer) -> None:
    """An unforeseen error is a traceback: lines of the source, and neither what is in the variables nor in the statements."""
    url = lab_server.url.replace(f"/{DATABASE}", "/broken")
    lab_server.do("create database broken")
    laboratory.ok("study", "list", "--database", url)
    lab_server.do("alter table studies rename column study_name to x", url)
    failed = laboratory.run("study", "status", "of-patient-0042", "--database", url)
    assert failed.code == 1
    assert "Traceback" in failed.err
    assert lab_server.word not in failed.err
    assert "of-patient-0042" not in failed.err


def allow_everything() -> None:
    """Allow everything to everybody, as a careless umask does."""
    os.umask(0)


def test_what_is_written_is_not_for_everybody(laboratory: Laboratory) -> None:
    """Whatever the umask says, no other user can read a file or enter a folder that a command makes: they show patients."""
    check = laboratory.start("data", "check", *laboratory.data, preexec=allow_everything)
    out, err = check.communicate(timeout=120)
    assert check.returncode == 0, (out, err)
    made = [laboratory.outputs, *laboratory.outputs.rglob("*")]
    assert {"images.npy", "index.csv"} <= {path.name for path in made}
    assert [path for path in made if path.stat().st_mode & 0o007] == []
    assert laboratory.outputs.stat().st_mode & 0o070 == 0o070  # the group's rights are the umask's
