"""Probes of a process: alive while its loops turn, ready while its heartbeats are sent, served beside the metrics."""

from __future__ import annotations

from contextlib import ExitStack

import fakeredis
import httpx

from services.runtime.exposition import exposed
from services.runtime.heartbeat import HEARTBEAT_TTL_S, HUNG_AFTER_S, STUCK_AFTER_S, HeartbeatThread, Liveness
from services.runtime.probes import Probes
from services.runtime.settings import load_settings
from tests.support import free_port, wait_until


def test_a_starting_process_is_alive_and_not_ready() -> None:
    """Given a process that waits for a server or migrates, I expect no restart, and no work for it yet."""
    probes = Probes()

    assert (probes.live(), probes.ready()) == (True, False)


def test_a_process_is_ready_until_its_last_heartbeat_has_expired() -> None:
    """Given a heartbeat, I expect readiness for as long as its key lives in Redis."""
    now = 1_000.0
    probes = Probes(clock=lambda: now)
    probes.beat()

    now += HEARTBEAT_TTL_S - 0.1
    assert probes.ready()
    now += 0.1
    assert (probes.ready(), probes.live()) == (False, True)


def test_a_loop_that_hangs_is_a_process_to_restart() -> None:
    """Given two loops of which one stops turning, I expect life for longer than it takes to be stuck, and no longer."""
    now = 1_000.0
    probes, loops = Probes(), [Liveness(clock=lambda: now), Liveness(clock=lambda: now)]
    probes.watch(loop.turning for loop in loops)

    now += STUCK_AFTER_S
    assert (loops[1].alive(), probes.live()) == (False, True)

    now += HUNG_AFTER_S - STUCK_AFTER_S
    loops[0].mark()
    assert not probes.live()
    loops[1].mark()
    assert probes.live()


def test_the_probes_are_served_beside_the_metrics() -> None:
    """Given a process with metrics, I expect 503 or 200 by the heartbeats that Redis takes, and by its loops."""
    port, server, turns = free_port(), fakeredis.FakeServer(), [True]

    def status(path: str) -> int:
        return httpx.get(f"http://127.0.0.1:{port}{path}").status_code

    with exposed(load_settings(ltm_metrics_port=port), "memory") as metrics, ExitStack() as ended:
        metrics.watch([lambda: turns[0]])
        assert (status("/livez"), status("/readyz"), status("/metrics"), status("/")) == (200, 503, 200, 200)
        # A slip in the manifest of a probe is to be seen, and not a probe that never fails.
        assert [status(path) for path in ("/healthz", "/livez/", "/LIVEZ", "/metrics/x")] == [404] * 4

        server.connected = False
        thread = HeartbeatThread(
            fakeredis.FakeRedis(server=server), "memory", [], interval_s=0.01, on_sent=metrics.beat
        )
        thread.start()
        ended.callback(thread.stop)
        assert (status("/livez"), status("/readyz")) == (200, 503)

        server.connected = True
        wait_until(lambda: status("/readyz") == 200, description="a heartbeat")
        turns[0] = False
        assert (status("/livez"), status("/readyz")) == (503, 200)
