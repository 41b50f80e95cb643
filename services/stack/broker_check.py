"""The check that the broker of `BROKER_URL` can be used: workers and adapters would wait for it without an end."""

from __future__ import annotations

import logging
import re

import redis
from keepsake_client.errors import Unavailable

from services.runtime.errors import CannotStart
from services.runtime.redis import connect, words
from services.runtime.settings import hosts_of, mask_url

#: Of each attempt to connect to RabbitMQ.
TIMEOUT_S = 2.0
#: Whose quorum queues have the time limit that dead letters are kept for.
OLDEST_RABBITMQ = (3, 10)


def check_redis(client: redis.Redis, variable: str, url: str) -> None:
    """Check that a Redis answers.

    Args:
        variable: the setting that names it.

    Raises:
        CannotStart: it refuses the user, the password or the database.
        Unavailable: it does not answer yet.
    """
    named = f"{variable} is {mask_url(url)!r}"
    try:
        client.ping()
    except redis.AuthenticationError as error:
        raise CannotStart(f"{named}, and Redis refuses it: {words(error, variable)}") from None
    except redis.exceptions.NoPermissionError:
        return  # a user without the right to PING: its own processes tell what else it lacks
    except (redis.RedisError, OSError) as error:
        if "DB index" in str(error):
            raise CannotStart(f"{named}, and Redis refuses it: {error}; give a database that it has") from None
        raise Unavailable(f"{named}, and Redis does not answer there: {words(error)}") from None


def check_broker(url: str, timeout_s: float = TIMEOUT_S) -> None:
    """Check that the broker answers and accepts user, password and virtual host.

    Raises:
        CannotStart: it does not accept them, or is too old, or RabbitMQ's client is not installed.
        Unavailable: it does not answer yet.
    """
    if not url.startswith("amqp"):
        check_redis(connect(url, timeout_s), "BROKER_URL", url)
        return
    try:
        import pika  # noqa: PLC0415 - an extra that is seldom installed
        from pika.exceptions import ProbableAccessDeniedError, ProbableAuthenticationError  # noqa: PLC0415

        from services.runtime.amqp import words as amqp_words  # noqa: PLC0415
    except ImportError:
        raise CannotStart(
            "BROKER_URL is of RabbitMQ, whose client is not installed: add the extra keepsake-ltm[rabbitmq]"
        ) from None
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    named = f"BROKER_URL is {mask_url(url)!r}"
    reason = ""
    for server in hosts_of(url):  # several, of which one is enough
        try:
            parameters = pika.URLParameters(server)
            parameters.socket_timeout = parameters.stack_timeout = timeout_s
            connection = pika.BlockingConnection(parameters)
            version = str(connection._impl.server_properties.get("version"))
            connection.close()
        except ValueError as error:
            raise CannotStart(f"{named}, which RabbitMQ's client cannot read: {error}") from None
        except (ProbableAuthenticationError, ProbableAccessDeniedError):
            raise CannotStart(f"{named}, and RabbitMQ refuses it: correct user, password and virtual host") from None
        except Exception as error:  # noqa: BLE001 - of the name, the socket, TLS or the handshake, without a common class
            reason = amqp_words(error)
        else:
            if tuple(map(int, re.findall("[0-9]+", version)[:2])) < OLDEST_RABBITMQ:
                raise CannotStart(
                    f"{named}, a RabbitMQ {version}, whose quorum queues keep no dead letters: take 3.10 or later"
                )
            return
    raise Unavailable(f"{named}, and RabbitMQ does not answer there: {reason}")
