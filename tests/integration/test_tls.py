"""TLS to Redis and to PostgreSQL, configured by the URL alone, and the errors of an untrusted certificate.

Neither embedded server is built with TLS, so these tests run the machine's own programs.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from keepsake_client.protocol import conversation_key

from services.long_term_memory.postgres.pool import open_pool, reachable
from services.runtime.errors import CannotStart
from services.runtime.redis import connect, connect_async
from tests.integration.service_process import ServiceProcess, running
from tests.support import free_port, wait_until

PASSWORD = "hush-7f3a"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Certificates:
    """A certificate authority with its certificates, and another authority without any."""

    directory: Path

    def __getitem__(self, name: str) -> str:
        return str(self.directory / name)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that PostgreSQL's account can traverse when root runs the tests; pytest's own is closed to it."""
    directory = Path(tempfile.mkdtemp(prefix="ltm-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def certificates(place: Path) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "other"):
        openssl(
            *("req", "-x509", *curve, "-days", "2", "-subj", f"/CN=Keepsake test {authority}"),
            *("-keyout", f"{authority}.key", "-out", f"{authority}.pem"),
        )
    (place / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(
            *("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-out", f"{name}.pem"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"),
        )
    return Certificates(place)


# --- Redis


@pytest.fixture(scope="module")
def tls_port(certificates: Certificates) -> Iterator[int]:
    """The port of a Redis with TLS only, which requires client certificates of the same authority."""
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("there is no redis-server with TLS: the embedded Valkey is built without it")
    port = free_port()
    files = ("--tls-cert-file", "server.pem", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.pem")
    server = subprocess.Popen(
        [
            *(program, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "127.0.0.2", *files),
            *("--requirepass", PASSWORD, "--save", "", "--dir", str(certificates.directory)),
        ],
        cwd=certificates.directory,
        stdout=subprocess.PIPE,
        text=True,
    )

    def answers() -> bool:
        try:
            return bool(redis.Redis.from_url(redis_url(port, certificates)).ping())
        except redis.ConnectionError:
            return False

    try:
        wait_until(lambda: server.poll() is not None or answers(), description="Redis over TLS")
        if server.poll() is not None:
            pytest.skip(f"redis-server speaks no TLS here: {server.communicate()[0][-300:]}")
        yield port
    finally:
        server.kill()
        server.communicate()


def redis_url(port: int, certificates: Certificates, authority: str = "ca.pem", host: str = "localhost") -> str:
    return (
        f"rediss://:{PASSWORD}@{host}:{port}/0?ssl_ca_certs={quote(certificates[authority])}"
        f"&ssl_certfile={quote(certificates['client.pem'])}&ssl_keyfile={quote(certificates['client.key'])}"
    )


def test_the_memory_service_works_over_tls(tls_port: int, certificates: Certificates, tmp_path: Path) -> None:
    """Given rediss:// with an authority and a client certificate in the URL, I expect a message to be stored."""
    url = redis_url(tls_port, certificates)
    with running("services.memory", "memory", url, tmp_path / "log") as service, redis.Redis.from_url(url) as client:
        client.lpush("user_input_queue", json.dumps({"user_id": "anna", "content": "I like tea"}))
        wait_until(lambda: client.llen(conversation_key("anna")), description="the conversation")
        assert PASSWORD not in service.log()


def test_the_adapters_work_over_tls(tls_port: int, certificates: Certificates, tmp_path: Path) -> None:
    """Given the same, I expect the adapters to answer an invalid request with its error."""
    url = redis_url(tls_port, certificates)
    with (
        running("adapters", "long-term-memory-adapters", url, tmp_path / "log"),
        redis.Redis.from_url(url) as client,
        client.pubsub(ignore_subscribe_messages=True) as subscription,
    ):
        subscription.subscribe("ltm_responses")
        wait_until(lambda: client.pubsub_numsub("ltm_responses")[0][1], description="the subscription")
        client.lpush("ltm_requests", json.dumps({"request_id": "r1", "type": "forget", "user_id": "anna"}))
        response = wait_until(lambda: subscription.get_message(timeout=0.1), description="the response")
        assert json.loads(response["data"])["error"].startswith("unknown_type")


@pytest.fixture
def sentinel_port(tls_port: int, certificates: Certificates, tmp_path: Path) -> Iterator[int]:
    """The port of a sentinel with TLS only, which watches that Redis by TLS."""
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port 0\ntls-port {port}\nbind 127.0.0.1\ndir {tmp_path}\ntls-replication yes\n"
        f"tls-cert-file {certificates['server.pem']}\ntls-key-file {certificates['server.key']}\n"
        f"tls-ca-cert-file {certificates['ca.pem']}\n"
        f"sentinel monitor mymaster 127.0.0.1 {tls_port} 1\nsentinel auth-pass mymaster {PASSWORD}\n"
    )
    sentinel = subprocess.Popen(["redis-server", str(config), "--sentinel"], stdout=subprocess.DEVNULL)

    def names_a_master() -> bool:
        with suppress(redis.ConnectionError), connect(sentinel_url(port, certificates)) as client:
            return bool(client.ping())
        return False

    try:
        wait_until(names_a_master, description="Redis behind Sentinel")
        yield port
    finally:
        sentinel.kill()
        sentinel.wait()


def sentinel_url(port: int, certificates: Certificates, authority: str = "ca.pem") -> str:
    """The same options, for Redis and the sentinel alike."""
    return (
        redis_url(port, certificates, authority).replace("rediss:", "rediss+sentinel:").replace("/0?", "/mymaster/0?")
    )


def test_redis_behind_sentinel_works_over_tls(sentinel_port: int, certificates: Certificates) -> None:
    """Given rediss+sentinel://, I expect both kinds of client to be connected, by TLS to the sentinel and to Redis."""
    url = sentinel_url(sentinel_port, certificates)

    async def connected() -> bool:
        async with connect_async(url) as client:
            return bool(await client.set("a", "1"))

    with connect(url) as client:
        assert client.set("a", "1")
    assert asyncio.run(connected())


def test_a_sentinel_of_an_unknown_authority_is_not_asked(sentinel_port: int, certificates: Certificates) -> None:
    """Given a CA that did not sign the sentinel's certificate, I expect no connection, and no password in the error."""
    with (
        connect(sentinel_url(sentinel_port, certificates, "other.pem")) as client,
        pytest.raises(redis.ConnectionError, match="certificate verify failed") as refused,
    ):
        client.ping()
    assert PASSWORD not in str(refused.value)


def events_of_certificate(log: str) -> list[str]:
    """The events of the lines about a certificate, of those that are written to their end."""
    lines = [line for line in log.splitlines(keepends=True) if "certificate verify failed" in line]
    return [json.loads(line)["event"] for line in lines if line.endswith("\n")]


@pytest.mark.parametrize(
    ("module", "event"),
    [("services.memory", "dependency_down"), ("services.chat_ai", "dependency_down"), ("adapters", "dependency_down")],
)
def test_an_unknown_authority_is_logged(
    tls_port: int, certificates: Certificates, tmp_path: Path, module: str, event: str
) -> None:
    """Given a CA that did not sign the server's certificate, I expect a line with that reason, and no password."""
    service = ServiceProcess(module, "no-name", redis_url(tls_port, certificates, "other.pem"), tmp_path / "log")
    try:
        # The client logs a line of its own, which may come first.
        wait_until(lambda: event in events_of_certificate(service.log()), description="a line about the certificate")
        assert PASSWORD not in service.log()
        assert "Traceback" not in service.log()
    finally:
        service.close()


@pytest.mark.parametrize(
    ("authority", "host", "why"),
    [
        ("other.pem", "localhost", "certificate verify failed"),
        ("ca.pem", "127.0.0.2", "IP address mismatch"),
        ("nowhere.pem", "localhost", "No such file or directory"),
    ],
)
def test_a_command_says_what_is_wrong_with_a_certificate(
    tls_port: int, certificates: Certificates, authority: str, host: str, why: str
) -> None:
    """Given an untrusted certificate, I expect `ltm` to say why in one line, without the password."""
    url = redis_url(tls_port, certificates, authority, host)
    done = ltm("search", "anna", "tea", REDIS_URL=url)

    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("ltm: ")
    assert why in line
    assert PASSWORD not in line


def ltm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", "from services.cli import main; main()", *arguments],
        env={**inherited, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- PostgreSQL


@pytest.fixture(scope="module")
def postgres_port(certificates: Certificates, place: Path) -> Iterator[int]:
    """The port of a PostgreSQL that requires TLS and a password."""
    if (found := shutil.which("postgres")) is None:
        pytest.skip("there is no PostgreSQL with TLS: the embedded one is built without it")
    programs, data = Path(found).resolve().parent, place / "data"
    account = _account()
    for name in ("server.pem", "server.key"):
        shutil.copy(certificates[name], place / f"postgres-{name}")
    (place / "postgres-server.key").chmod(0o600)
    (place / "password").write_text(PASSWORD)
    if account:
        for path in [place / "postgres-server.key", place / "password"]:
            os.chown(path, account.pw_uid, account.pw_gid)
        data.mkdir(mode=0o700)
        os.chown(data, account.pw_uid, account.pw_gid)
    port = free_port()
    made = run_as(
        account,
        *(str(programs / "initdb"), "--pgdata", str(data), "--username", "keepsake", "--no-sync"),
        *("--auth", "scram-sha-256", "--pwfile", str(place / "password")),
    ).communicate()[0]
    assert (data / "PG_VERSION").exists(), made
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(place / "postgres-server.pem"),
        "ssl_key_file": str(place / "postgres-server.key"),
        "fsync": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    server = run_as(
        account, str(programs / "postgres"), "-D", str(data), "-k", "", "-h", "127.0.0.1", "-p", str(port), *options
    )
    try:
        url = database_url(port, certificates)
        wait_until(lambda: server.poll() is not None or reachable(url), description="PostgreSQL over TLS")
        if server.poll() is not None:
            pytest.skip(f"PostgreSQL speaks no TLS here: {server.communicate()[0][-300:]}")
        yield port
    finally:
        server.terminate()
        server.communicate()


def _account() -> pwd.struct_passwd | None:
    """The account for PostgreSQL, which refuses to run as root, where root runs the tests."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres'")


def run_as(account: pwd.struct_passwd | None, *argv: str) -> subprocess.Popen[str]:
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    return subprocess.Popen(argv, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **identity)  # type: ignore[call-overload,no-any-return]  # mypy cannot match ** to its overloads


def database_url(port: int, certificates: Certificates, authority: str = "ca.pem", host: str = "localhost") -> str:
    return (
        f"postgresql://keepsake:{PASSWORD}@{host}:{port}/postgres"
        f"?sslmode=verify-full&sslrootcert={quote(certificates[authority])}"
    )


def test_the_pool_uses_tls(postgres_port: int, certificates: Certificates) -> None:
    """Given sslmode=verify-full and an authority in the URL, I expect encrypted connections."""
    pool = open_pool(database_url(postgres_port, certificates), 1)
    with pool, pool.connection() as connection:
        row = connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()

    assert row == (True,)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize(
    ("authority", "password", "why"),
    [
        ("other.pem", PASSWORD, "certificate verify failed"),
        ("nowhere.pem", PASSWORD, "does not exist"),
        ("ca.pem", "hush-wrong", "password authentication failed"),
    ],
)
def test_the_error_of_a_refused_database_says_why(
    postgres_port: int, certificates: Certificates, authority: str, password: str, why: str
) -> None:
    """Given an unknown authority or a wrong password, I expect one line with that reason, without the password."""
    url = database_url(postgres_port, certificates, authority).replace(PASSWORD, password)

    assert not reachable(url)
    with within(15), pytest.raises(CannotStart) as refused:
        open_pool(url, 1)

    line = str(refused.value)
    assert why in line
    assert "\n" not in line
    assert "hush" not in line
