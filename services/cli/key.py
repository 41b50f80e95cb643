"""`ltm key`: make, list, revoke and rotate the keys of the gateway, and sign tokens for one user."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Annotated, Any

import typer
from keepsake_client.fields import Id
from pydantic import TypeAdapter, ValidationError

from services.cli.options import DEFAULT_DATA_DIRECTORY, EVERY_RIGHT, rights_of
from services.cli.output import Output, print_error, printable
from services.gateway.access import ROLES, TOKEN_RIGHTS, Right
from services.gateway.key_file import KeyFile
from services.gateway.keys import MAX_RATE, StoredKey, first_problem, utc_now
from services.runtime.settings import load_settings
from services.stack.data_directory import DataDirectory

MAX_DAYS = 36_500

_DURATION = re.compile(r"([0-9]{1,6})(m|h|d)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

Name = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]
May = Annotated[
    str | None, typer.Option(metavar="RIGHTS", help=f"Rights, with commas between: {', '.join(Right)}; or all.")
]
Role = Annotated[
    str | None,
    typer.Option(
        metavar="ROLE",
        help="Instead of --may: viewer (sees all, changes nothing), operator (sees no contents) or full.",
    ),
]
ForAgent = Annotated[str | None, typer.Option("--agent", metavar="ID", help="For this character of the AI alone.")]
File = Annotated[
    Path | None, typer.Option(help="The key file; LTM_GATEWAY_KEYS or else that of the data directory by default.")
]
KeysDir = Annotated[Path, typer.Option("--data-dir", help="The stack's data directory.")]

app = typer.Typer(
    name="key",
    help="Keys and tokens of the gateway: who may do what, for which users.",
    no_args_is_help=True,
)


@app.command()
def create(
    name: Name,
    may: May = None,
    role: Role = None,
    user: Annotated[str | None, typer.Option(metavar="ID", help="For this user alone.")] = None,
    users: Annotated[
        str, typer.Option(metavar="PREFIX", help="For the users whose ids begin with this; all by default.")
    ] = "",
    agent: ForAgent = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE|DAYS", help="Until when: a date such as 2030-01-31, or days from now.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_RATE, help="Requests a second, 0 for any number; LTM_GATEWAY_RATE by default."),
    ] = None,
    file: File = None,
    data_dir: KeysDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Make a key, and print it, this once: the file has its hash alone."""
    if user is not None and users:
        raise typer.BadParameter("give one of --user and --users")
    rights, until = _rights(may, role), _expiry(expires) if expires else None
    keys = _key_file(file, data_dir)
    key = keys.create(name, rights, user=user, users=users, agent=agent, rate=rate, expires=until)
    _show_once(key, keys, name)


@app.command("list")
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print the keys as JSON.")] = False,
    file: File = None,
    data_dir: KeysDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """List the keys: what each may do, for whom, and whether it is valid; no key itself."""
    place, output, zone = _key_file(file, data_dir), Output(), load_settings().timezone
    keys = place.read()
    if as_json:
        output.json([_described(key) for key in keys])
        return
    for key in keys:
        output.line(_line(key, zone), None if key.state(utc_now()) == "valid" else "dim")
    if not keys:
        output.line(f"no keys in {place.path}: `ltm key create` makes one", "dim")


@app.command()
def revoke(name: Name, file: File = None, data_dir: KeysDir = DEFAULT_DATA_DIRECTORY) -> None:
    """Revoke a key: the gateway takes it no more, a second later."""
    _key_file(file, data_dir).revoke(name)
    Output().line(f"revoked {name}")


@app.command()
def rotate(
    name: Name,
    keep: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old key stays valid, such as 30m, 24h or 7d; 0: not.")
    ] = "24h",
    file: File = None,
    data_dir: KeysDir = DEFAULT_DATA_DIRECTORY,
) -> None:
    """Replace a key by a new one of the same rights, and print it, this once."""
    kept_for = _duration(keep)
    keys = _key_file(file, data_dir)
    key = keys.rotate(name, kept_for)
    _show_once(key, keys, name)
    print_error(f"the old key is valid for another {keep}" if kept_for else "the old key is not valid any more")


@app.command()
def token(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user that it is for.")],
    may: Annotated[str, typer.Option(metavar="RIGHTS", help="Rights, with commas between.")] = ",".join(TOKEN_RIGHTS),
    agent: ForAgent = None,
    minutes: Annotated[float, typer.Option(min=1, max=1_440, help="For how long it is valid.")] = 15,
) -> None:
    """Sign a short token for one user with LTM_GATEWAY_TOKEN_SECRET, and print it."""
    # Here: the other commands do without cryptography, which takes 0.1 s.
    from services.gateway.tokens import mint, token_secret  # noqa: PLC0415

    try:
        identity = TypeAdapter[str](Id).validate_python(user)
    except ValidationError as error:
        raise typer.BadParameter(first_problem(error), param_hint="USER") from None
    Output().line(mint(token_secret(load_settings()), identity, rights_of(may), minutes * 60, agent))


def _rights(may: str | None, role: str | None) -> tuple[Right, ...]:
    if (may is None) == (role is None):
        raise typer.BadParameter("give one of --may and --role")
    if may is not None:
        return rights_of(may)
    if role not in ROLES:
        raise typer.BadParameter(f"there is no role {role!r}; there are {', '.join(ROLES)}", param_hint="--role")
    return ROLES[role]


def _key_file(file: Path | None, data_dir: Path) -> KeyFile:
    return KeyFile(file or load_settings().ltm_gateway_keys or DataDirectory(data_dir).keys)


def _show_once(key: str, keys: KeyFile, name: str) -> None:
    """Print a key on stdout, for a pipe or a variable, and what is to be known of it on stderr."""
    Output().line(key)
    print_error(f"this is the key {name}, shown this once; {keys.path} has its hash alone")


def _expiry(text: str) -> datetime:
    if re.fullmatch("[0-9]{1,5}", text):
        return utc_now() + timedelta(days=min(int(text), MAX_DAYS))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("give a date such as 2030-01-31, or days from now", param_hint="--expires") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=load_settings().timezone)


def _duration(text: str) -> timedelta:
    if text == "0":
        return timedelta()
    if not (parts := _DURATION.fullmatch(text)):
        raise typer.BadParameter("give minutes, hours or days, such as 30m, 24h or 7d, or 0", param_hint="--keep")
    return min(timedelta(**{_UNITS[parts[2]]: int(parts[1])}), timedelta(days=MAX_DAYS))


def _described(key: StoredKey) -> dict[str, Any]:
    """A key without what is kept of its secrets."""
    return {
        **key.model_dump(mode="json", exclude={"secrets"}),
        "state": key.state(utc_now()),
        "ids": [secret.id for secret in key.secrets],
    }


def _line(key: StoredKey, zone: tzinfo) -> str:
    whose = f"user {key.user}" if key.user else f"users {key.users}…" if key.users else "all users"
    parts = [f"{key.name:<20}", f"{key.state(utc_now()):<8}", f"ltm_{key.secrets[-1].id}_…", whose]
    parts += [f"agent {key.agent}"] if key.agent else []
    parts += [f"until {key.expires.astimezone(zone):%Y-%m-%d %H:%M}"] if key.expires else []
    parts += [f"{key.rate:g}/s"] if key.rate is not None else []
    return printable("  ".join([*parts, _named(key.may)]))


def _named(rights: Iterable[Right]) -> str:
    return EVERY_RIGHT if set(rights) == set(Right) else ",".join(rights)
