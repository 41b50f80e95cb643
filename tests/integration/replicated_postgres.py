"""ReplicatedPostgres: a real primary and its streaming replicas, of the embedded PostgreSQL's programs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from services.long_term_memory.postgres.pool import reachable
from services.stack.embedded_postgres import (
    DATABASE,
    EPHEMERAL_TUNING,
    TUNING,
    USER,
    _make_traversable,
    _system_account,
    binaries,
    postgres_url,
)
from tests.support import wait_until

_REPLICATED = {
    "wal_level": "replica",
    "max_wal_senders": "10",
    "wal_keep_size": "1GB",  # a standby that was stopped finds what it has missed
    "shared_buffers": "16MB",
    # What the primary removes or locks ends what a replica reads at once, so a test need not wait for it.
    "max_standby_streaming_delay": "0",
    "wal_retrieve_retry_interval": "100ms",
}


class Server:
    """One PostgreSQL, on a Unix socket of its own."""

    def __init__(self, home: Path, account: pwd.struct_passwd | None) -> None:
        self.home = home
        self.url = postgres_url(home, None)
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL to its end."""
        subprocess.run([str(binaries() / program), *arguments], check=True, stdout=subprocess.DEVNULL, **self._as_user)

    def start(self, database: str = DATABASE) -> None:
        """Start it, and wait until a database of it answers."""
        tuning = TUNING | EPHEMERAL_TUNING | _REPLICATED
        command = [str(binaries() / "postgres"), "-D", str(self.home / "data"), "-k", str(self.home), "-h", ""]
        command += [word for name, value in tuning.items() for word in ("-c", f"{name}={value}")]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user)
        wait_until(
            lambda: reachable(self.url.replace(f"/{DATABASE}?", f"/{database}?")), description="PostgreSQL to answer"
        )

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a statement; one that replay has ended on a replica is executed again."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            try:
                cursor = connection.execute(statement.encode())
            except psycopg.errors.SerializationFailure:
                return self.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def stop(self) -> None:
        """End it at once, with all of its processes, as a crash does."""
        if self._process is not None:
            self.thaw()
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=60)
            self._process = None

    def freeze(self) -> None:
        """Stop all of its processes in the middle of what they do."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have them go on."""
        self._signal(signal.SIGCONT)

    def pause_replay(self) -> None:
        """Have a replica receive the log and not replay it."""
        self.execute("SELECT pg_wal_replay_pause()")
        paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
        wait_until(lambda: self.execute(paused)[0][0], description="replay to pause")

    def resume_replay(self) -> None:
        """Have it replay the log again."""
        self.execute("SELECT pg_wal_replay_resume()")

    def promote(self) -> None:
        """Make a replica a primary."""
        self.execute("SELECT pg_promote()")

    @property
    def _as_user(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        ids = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return {**ids, "cwd": self.home, "env": {**os.environ, "HOME": str(self.home)}}

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            os.kill(pid, number)


class ReplicatedPostgres:
    """A primary and its replicas, in a temporary directory."""

    def __init__(self) -> None:
        # Not pytest's directory: that one is closed to PostgreSQL's user when root runs the tests.
        self._home = Path(tempfile.mkdtemp(prefix="ltm-replica-"))
        self._account = _system_account() if os.geteuid() == 0 else None
        if self._account is not None:
            _make_traversable(self._home / "any", self._account)
            _make_traversable(binaries(), self._account)
        self._servers: list[Server] = []
        self.primary = self._server()
        data = str(self.primary.home / "data")
        self.primary.run("initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync")
        self.primary.start(database="postgres")
        with psycopg.connect(self.primary.url.replace(f"/{DATABASE}?", "/postgres?"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")

    def replica(self, of: Server | None = None) -> Server:
        """A new replica, that runs.

        Args:
            of: whose log it replays; None for the primary.
        """
        replica = self._server()
        data = str(replica.home / "data")
        source = ["-h", str(self.primary.home), "-U", USER, "-d", f"dbname={DATABASE}"]
        replica.run("pg_basebackup", *source, "-D", data, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        if of is not None:
            with (replica.home / "data" / "postgresql.auto.conf").open("a") as settings:
                settings.write(f"primary_conninfo = 'host={of.home} user={USER}'\n")
        replica.start()
        return replica

    def stop(self) -> None:
        """End all servers, and remove what they stored."""
        for server in self._servers:
            server.stop()
        shutil.rmtree(self._home)

    def _server(self) -> Server:
        home = self._home / str(len(self._servers))
        home.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(home, self._account.pw_uid, self._account.pw_gid)
        server = Server(home, self._account)
        self._servers.append(server)
        return server
