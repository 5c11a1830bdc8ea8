from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg2
import pytest

from storage.errors import PrivateServerError
from storage.private_server import DATABASE, PORT, ROLE, PrivateServer
from storage.server_home import installed_binaries, known_state

PROJECT = Path(__file__).parents[2]
START = (
    "import sys, pathlib; from storage.private_server import PrivateServer; PrivateServer(pathlib.Path(sys.argv[1]))"
)
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def remove(server: PrivateServer) -> None:
    """Stop *server* and remove what root's server keeps outside the output folder."""
    state = known_state(server.folder)
    server.stop()
    if state is not None:
        shutil.rmtree(state)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short folder, the root of all that a test makes."""
    path = Path(tempfile.mkdtemp(prefix="mps-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[PrivateServer]:
    """A private server that runs."""
    private = PrivateServer(folder)
    private.start()
    yield private
    remove(private)


def ask(server: PrivateServer, sql: str) -> object:
    """Return the one value that *sql* asks for, if any."""
    connection = psycopg2.connect(host=server.url.query["host"], port=PORT, user=ROLE, dbname=DATABASE)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def state_of(server: PrivateServer) -> Path:
    """Return the folder of the server's data."""
    state = known_state(server.folder)
    assert state is not None
    return state


def postmaster(server: PrivateServer) -> psutil.Process:
    """Return the server's first process."""
    return psutil.Process(int((state_of(server) / "data/postmaster.pid").read_text().splitlines()[0]))


def modes(path: Path) -> dict[Path, tuple[int, int, int]]:
    """Return mode, user and group of *path* and of every folder above it."""
    return {p: (stat.S_IMODE(p.stat().st_mode), p.stat().st_uid, p.stat().st_gid) for p in (path, *path.parents)}


def test_starts_stops_and_keeps(server: PrivateServer) -> None:
    """What was written is there after a stop and a start, and starting twice is starting once."""
    ask(server, "create table kept (x int); insert into kept values (7)")
    before = postmaster(server).pid
    server.start()
    assert postmaster(server).pid == before
    server.stop()
    assert not server.running()
    server.stop()
    server.start()
    assert server.running()
    assert ask(server, "select x from kept") == 7


def test_settings(server: PrivateServer) -> None:
    """PostgreSQL 18 that listens on no network, is safe against power loss, and has room for many workers."""
    assert str(ask(server, "show server_version")).startswith("18.")
    assert ask(server, "show listen_addresses") == ""
    assert ask(server, "show fsync") == "on"
    assert ask(server, "show max_connections") == "200"
    assert ask(server, "show timezone") == "UTC"
    assert ask(server, "show server_encoding") == "UTF8"
    rules = "select count(*) || ' ' || min(type) || ' ' || min(auth_method) from pg_hba_file_rules"
    assert ask(server, rules) == "1 local peer"
    for process in (postmaster(server), *postmaster(server).children()):
        with suppress(psutil.NoSuchProcess):  # some come and go
            assert not process.net_connections("inet")


def test_the_log_repeats_nothing_that_is_stored(server: PrivateServer) -> None:
    """It says what failed, and neither the statement nor the row: they name patients."""
    ask(server, "create table folds (patient text check (patient = ''))")
    with pytest.raises(psycopg2.errors.CheckViolation, match=r"Failing row contains .patient-4711"):
        ask(server, "insert into folds values ('patient-4711')")
    log = (state_of(server) / "log").read_text(encoding="utf-8")
    assert "violates check constraint" in log
    assert "4711" not in log


def test_every_folder_of_the_server_is_closed(server: PrivateServer) -> None:
    """Data, log, socket and their folders are their owner's alone."""
    state = state_of(server)
    for path in (server.folder, state, state / "data", state / "log", state / "socket"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@as_root
def test_root_opens_no_folder(folder: Path) -> None:
    """As root, below a home of mode 700, every folder above the outputs and above the wheel stays as it was."""
    home = folder / "home"
    (home / "deep").mkdir(parents=True)
    home.chmod(0o700)
    watched = [home / "deep", installed_binaries(), Path("/var/lib"), Path(tempfile.gettempdir())]
    before = [modes(path) for path in watched]
    server = PrivateServer(home / "deep" / "outputs")
    server.start()
    try:
        assert ask(server, "select current_user") == ROLE
        assert [modes(path) for path in watched] == before
        assert modes(home)[home][0] == 0o700
    finally:
        remove(server)
    assert [modes(path) for path in watched] == before


@as_root
def test_nobody_else_gets_in(server: PrivateServer) -> None:
    """Another user cannot reach the socket; and could he, the server would not let him in as anybody."""
    socket_folder = Path(str(server.url.query["host"]))
    psql = Path(postmaster(server).exe()).with_name("psql")

    def attempt(user: str) -> str:
        command = [psql, "-h", str(socket_folder), "-p", str(PORT), "-U", user, "-d", DATABASE, "-c", "select 1"]
        done = subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False, cwd="/"
        )
        assert done.returncode != 0
        return done.stderr

    assert "Permission denied" in attempt(ROLE)
    for path in (state_of(server), socket_folder, socket_folder / f".s.PGSQL.{PORT}"):
        path.chmod(0o777)
    assert "Peer authentication failed" in attempt(ROLE)
    assert "no pg_hba.conf entry" in attempt("nobody")


@pytest.fixture
def ordinary_user(folder: Path) -> Iterator[None]:
    """This process is an ordinary user, to whom the folder belongs."""
    server = PrivateServer(folder / "root")  # whatever is imported late may lie where only root can read
    server.start()
    remove(server)
    shutil.rmtree(folder / "root")
    os.chown(folder, NOBODY, NOBODY)
    groups = os.getgroups()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)
    yield
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    os.setgroups(groups)


@as_root
@pytest.mark.usefixtures("ordinary_user")
def test_an_ordinary_user_has_all_in_the_output_folder(folder: Path) -> None:
    """Without root the data lie below the outputs, mode 700, and root, who is not their owner, is told so."""
    if not os.access(installed_binaries() / "postgres", os.X_OK):
        pytest.skip("the environment cannot be entered by another user")
    server = PrivateServer(folder)
    server.start()
    assert ask(server, "select current_user") == ROLE
    assert state_of(server) == folder / ".postgresql"
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert postmaster(server).uids().real == NOBODY
    os.setresuid(0, 0, 0)
    with pytest.raises(PrivateServerError, match="not a folder of user root"):
        PrivateServer(folder).start()
    with pytest.raises(psycopg2.OperationalError, match="Peer authentication failed"):
        psycopg2.connect(host=str(folder / ".postgresql/socket"), port=PORT, user=ROLE, dbname=DATABASE)
    os.setresuid(NOBODY, NOBODY, 0)
    server.stop()
    assert not server.running()


def test_eight_processes_start_one_server(folder: Path) -> None:
    """Processes that start the server at once, on nothing, all succeed, and there is one server."""
    command = [sys.executable, "-c", f"{START}.start()", str(folder)]
    starters = [subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    said = [starter.communicate(timeout=120)[1] for starter in starters]
    assert [starter.returncode for starter in starters] == [0] * 8, said
    server = PrivateServer(folder)
    assert ask(server, "select 1") == 1
    remove(server)


def test_a_caller_whose_output_is_captured_does_not_hang(folder: Path) -> None:
    """The server holds no pipe of the process that started it, and outlives it."""
    code = f"{START}.start(); print('started')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "started\n"
    server = PrivateServer(folder)
    assert server.running()
    assert postmaster(server).terminal() is None
    assert os.getsid(postmaster(server).pid) != os.getsid(0)
    remove(server)


@pytest.mark.parametrize("session", ["idle", "in a long statement"])
def test_recovers_from_a_kill(server: PrivateServer, session: str) -> None:
    """After a kill -9 of the server, with sessions that do not notice, it starts over what was left, and nothing is lost."""
    ask(server, "create table kept (x int); insert into kept values (7)")
    connection = psycopg2.connect(host=server.url.query["host"], port=PORT, user=ROLE, dbname=DATABASE, async_=1)
    while connection.poll() != psycopg2.extensions.POLL_OK:
        time.sleep(0.01)
    cursor = connection.cursor()
    cursor.execute("select 1" if session == "idle" else "select count(*) from generate_series(1, 20000000)")
    killed = postmaster(server)
    killed.send_signal(signal.SIGKILL)
    psutil.wait_procs([killed], timeout=10)
    assert not server.running()
    assert (state_of(server) / "data/postmaster.pid").exists()
    server.start()
    assert ask(server, "select x from kept") == 7
    connection.close()


def test_recovers_where_the_number_is_another_programs(server: PrivateServer) -> None:
    """After a reboot the process number in the lock file may be anybody's: the server starts nevertheless."""
    killed = postmaster(server)
    killed.send_signal(signal.SIGKILL)
    psutil.wait_procs([killed], timeout=10)
    with subprocess.Popen([shutil.which("sleep") or "sleep", "100"], user=state_of(server).stat().st_uid) as other:
        pid_file = state_of(server) / "data/postmaster.pid"
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        server.start()
        assert ask(server, "select 1") == 1
        assert other.poll() is None
        other.kill()


def test_a_killed_initdb_is_done_again(folder: Path) -> None:
    """Half-made data of a process that died is no data."""
    server = PrivateServer(folder)
    server.start()
    state = state_of(server)
    server.stop()
    (state / "data").rename(state / "data.new")
    (state / "data.new" / "PG_VERSION").unlink()
    server.start()
    assert ask(server, "select 1") == 1
    remove(server)


def test_a_server_on_another_machine_is_left_alone(server: PrivateServer) -> None:
    """Where the lock is another machine's, nothing is started on its data, and the line says what to do."""
    killed = postmaster(server)
    killed.send_signal(signal.SIGKILL)
    psutil.wait_procs([killed], timeout=10)
    mark = server.folder / "machine"
    here = mark.read_text()
    mark.write_text("node17\n0f0f0f0f\n")
    with pytest.raises(PrivateServerError, match=r"node17.*--database"):
        server.start()
    hostname, boot = here.split()
    for known in (f"{hostname}\nafter-a-reboot\n", f"new-container\n{boot}\n"):
        mark.write_text(known)
        server.start()
        assert ask(server, "select 1") == 1
        server.stop()


@as_root
def test_lost_data_are_not_replaced_by_nothing(folder: Path) -> None:
    """Where root's data are gone, an empty database in their place would look like losing every study: refused."""
    server = PrivateServer(folder)
    server.start()
    remove(server)
    with pytest.raises(PrivateServerError, match="which is not there; to begin anew remove"):
        server.start()


def test_a_server_that_cannot_start_says_why(server: PrivateServer) -> None:
    """The last word of the log is in the one line of the error."""
    server.stop()
    (state_of(server) / "data/PG_VERSION").write_text("9\n")
    with pytest.raises(PrivateServerError, match=r"does not start: .*FATAL") as caught:
        server.start()
    assert "\n" not in str(caught.value)


def test_a_long_path_gets_a_short_socket(folder: Path) -> None:
    """An output folder whose path is too long for a socket works like any other, and no folder that is not ours changes."""
    outputs = folder / ("long " * 20) / "$(touch ../broken) `id` 'outputs'\""
    outputs.mkdir(parents=True)
    before = modes(Path(tempfile.gettempdir()))
    server = PrivateServer(outputs)
    server.start()
    assert ask(server, "select 1") == 1
    assert modes(Path(tempfile.gettempdir())) == before
    assert len(str(server.url.query["host"])) < 90
    remove(server)
