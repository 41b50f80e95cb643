"""The documentation is held to the code: settings, wire, counters, log events, file names and commands."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import keepsake_client
import pytest
import typer
import yaml
from keepsake_client import protocol, turns
from keepsake_client.errors import InvalidMessage, KeepsakeError, Unavailable
from pydantic import BaseModel, SecretStr

from services.cli.app import build_app
from services.gateway.console.texts import read_texts
from services.runtime.errors import Expired, MemoryNotFound, ProfileConflict
from services.runtime.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README, README_ZH = ROOT / "README.md", ROOT / "README.zh-CN.md"
CONTRACT = DOCS / "contract.md"
#: Every page; the changelog also names what is gone.
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]
#: Where a path in a page may begin.
PATH_ROOTS = (ROOT, ROOT / "services/long_term_memory")
WIRE = [
    turns.TurnRecord,
    turns.Candidate,
    turns.Cut,
    protocol.MemoryUpdateMessage,
    protocol.LTMRequest,
    protocol.SearchData,
    protocol.SearchFilters,
    protocol.ContextData,
    protocol.ContextParts,
    protocol.AddData,
    protocol.ProfileUpdateData,
    protocol.MemoryListData,
    protocol.MemoryFilters,
    protocol.MemoryGetData,
    protocol.MemoryUpdateData,
    protocol.MemoryDeleteData,
    protocol.MemoryChange,
    protocol.LTMResponse,
    protocol.Memory,
    protocol.TraceRecord,
]

by_page = pytest.mark.parametrize("page", CURRENT_PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def between(text: str, start: str, end: str) -> str:
    """The part of `text` after `start` and before `end`; both must be there."""
    assert start in text
    rest = text.partition(start)[2]
    assert end in rest
    return rest.partition(end)[0]


def table_rows(text: str) -> list[list[str]]:
    """The cells of every row of the first table in `text`, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def code_spans(text: str) -> list[str]:
    """The inline code of a page, without its fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def code_blocks(page: Path) -> list[str]:
    """The fenced blocks of a page, without comments, which each language has of its own."""
    blocks = re.findall(r"```.*?```", page.read_text(), flags=re.DOTALL)
    return [re.sub(r"  # .*", "", block) for block in blocks]


@cache
def sources() -> dict[Path, ast.Module]:
    """The syntax trees of what runs: adapters, tasks, services and the client."""
    packages = ("adapters", "tasks", "services", "clients/python/keepsake_client")
    return {path: ast.parse(path.read_text()) for package in packages for path in (ROOT / package).rglob("*.py")}


@cache
def code_strings() -> set[str]:
    """Every string constant of the code."""
    return {
        node.value
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@cache
def defined_tests() -> set[str]:
    """The names of all test functions."""
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), flags=re.MULTILINE)
    }


def counted_names() -> Iterator[str]:
    """The names that the code counts in `ltm:counters`."""
    for tree in sources().values():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        counts = any(isinstance(node, ast.Name) and node.id == "COUNTERS" for node in ast.walk(tree))
        for call in calls:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            pending = name == "count" and ast.unparse(call.func).endswith(("resources.count", "counts.count"))
            if pending or (counts and (name == "hincrby" or "count" in name)):
                for argument in call.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield argument.value


def settings_table() -> str:
    """The rows of the settings table, as `Settings` has them."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        shown = "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


def renamed_settings() -> list[tuple[str, str]]:
    """The old and the new name of each renamed setting, as docs/configuration.md lists them."""
    table = between((DOCS / "configuration.md").read_text(), "<!-- renamed: ", "<!-- /renamed -->")
    return [(old.strip("`"), new.strip("`")) for old, new, _ in table_rows(table)]


def test_the_settings_table_is_that_of_the_code() -> None:
    """Given the table in docs/configuration.md, I expect a row for every setting, with its default and description."""
    table = between((DOCS / "configuration.md").read_text(), "|---|---|---|\n", "\n<!-- /settings -->")

    assert settings_table() == table.strip()


@pytest.mark.parametrize(("old", "new"), renamed_settings())
def test_the_old_name_of_a_setting_is_read(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a renamed setting in the environment under its old name, I expect its value under the new one."""
    monkeypatch.delenv(new, raising=False)
    monkeypatch.setenv(old, "1234")

    assert str(getattr(load_settings(), new.lower())).removesuffix(".0") == "1234"


def test_the_plain_example_is_short() -> None:
    """Given the plain redis-py example of README, I expect no more than the 15 lines promised."""
    example = between(README.read_text(), "import json, time, uuid, redis", "```")

    assert len([line for line in example.splitlines() if line.strip()]) <= 15


def test_the_client_example_fits_the_client() -> None:
    """Given the calls of the client in README, I expect methods and arguments that `AsyncClient` has."""
    tree = ast.parse(between(README.read_text(), "```python\nimport asyncio\n", "```"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "ltm"
    ]

    assert calls
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        signature = inspect.signature(getattr(keepsake_client.AsyncClient, call.func.attr))
        signature.bind(None, *call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords})


def test_the_readmes_have_the_same_code() -> None:
    """Given README in English and in Chinese, I expect equal code blocks, inline code and links."""
    english, chinese = README.read_text(), README_ZH.read_text()

    assert code_blocks(README) == code_blocks(README_ZH)
    assert Counter(code_spans(english)) == Counter(code_spans(chinese))
    links = re.compile(r"\]\(((?!README)[^)]+)\)")
    assert Counter(links.findall(english)) == Counter(links.findall(chinese))


def test_the_access_rules_are_those_of_the_file() -> None:
    """Given the rules in docs/security.md, I expect those that tests/integration/test_acl.py runs under."""
    rules = between((DOCS / "security.md").read_text(), "by tests/unit/test_docs.py -->\n```\n", "```\n")

    assert rules == (ROOT / "deploy" / "redis-acl.conf").read_text()


@pytest.mark.parametrize("model", WIRE, ids=lambda model: model.__name__)
def test_the_contract_has_every_field(model: type[BaseModel]) -> None:
    """Given a message of the wire, I expect each of its fields in docs/contract.md."""
    text = CONTRACT.read_text()

    assert [name for name in model.model_fields if f"`{name}`" not in text] == []


def test_the_contract_has_every_error() -> None:
    """Given the errors that a response may carry, I expect a row for each."""
    text = CONTRACT.read_text()
    errors: list[type[KeepsakeError]] = [
        InvalidMessage,
        *InvalidMessage.__subclasses__(),
        ProfileConflict,
        MemoryNotFound,
        Unavailable,
        Expired,
    ]

    assert [error.code for error in errors if f"| `{error.code}` |" not in text] == []


@pytest.mark.parametrize(
    ("page", "module", "constant"),
    [
        ("contract.md", "keepsake_client.protocol", "MAX_MESSAGE_BYTES"),
        ("contract.md", "keepsake_client.protocol", "MAX_NESTING"),
        ("contract.md", "keepsake_client.protocol", "MAX_ID_BYTES"),
        ("contract.md", "keepsake_client.protocol", "MAX_LIMIT"),
        ("contract.md", "keepsake_client.requests", "MAX_CONTAINS_CHARS"),
        ("contract.md", "keepsake_client.requests", "CONTEXT_CHARS"),
        ("contract.md", "keepsake_client.requests", "MAX_CONTEXT_CHARS"),
        ("contract.md", "keepsake_client.context", "MAX_QUOTE_CHARS"),
        ("contract.md", "services.long_term_memory.profile_service", "MAX_PROFILE_BYTES"),
        ("contract.md", "services.long_term_memory.memory_management", "MAX_PAGE_CHARS"),
        ("limits.md", "services.long_term_memory.retrieval.candidates", "EXACT_LIMIT"),
        ("limits.md", "services.long_term_memory.retrieval.ranking", "DEFAULT_MIN_SCORE"),
        ("limits.md", "services.long_term_memory.postgres.rows", "MAX_TERMS"),
        ("limits.md", "services.long_term_memory.embeddings.providers", "MAX_PASSAGE_CHARS"),
        ("limits.md", "services.long_term_memory.embeddings.providers", "MAX_PASSAGE_TOKENS"),
        ("limits.md", "services.long_term_memory.embeddings.providers", "MAX_QUERY_CHARS"),
        ("limits.md", "services.long_term_memory.embeddings.providers", "MAX_QUERY_TOKENS"),
    ],
)
def test_a_limit_is_that_of_the_code(page: str, module: str, constant: str) -> None:
    """Given a limit of the code, I expect its value in the page that lists it."""
    limit = getattr(import_module(module), constant)

    assert re.search(rf"(?<![\d,.]){limit:,}(?![\d,])", (DOCS / page).read_text())


def test_the_console_says_what_every_counter_means() -> None:
    """Given the counters that the code counts, I expect the console to have words for each, as a fault or as none."""
    texts = read_texts("queues")
    explained = [name.partition("_")[2] for name in texts if name.startswith(("counter_", "counted_"))]

    assert sorted(explained) == sorted(set(counted_names()))


def test_the_contract_has_every_counter() -> None:
    """Given the counters that the code counts, I expect those of docs/contract.md, no more and no fewer."""
    section = between(CONTRACT.read_text(), "\n## `ltm:counters`\n", "\n## ")

    assert {row[0].strip("`") for row in table_rows(section)} == set(counted_names())


def test_the_events_that_an_operator_sees_are_logged() -> None:
    """Given a log event or counter in docs/reliability.md, I expect its name in the code."""
    names = set()
    for line in (DOCS / "reliability.md").read_text().splitlines():
        if line.count("|") == 6:  # event, may happen, never happens, operator sees, proved by
            names |= set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", line.split("|")[4]))
    names.discard("dead")

    assert "dependency_down" in names
    assert names - code_strings() == set()


@by_page
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    """Given the path of a file in a page, I expect that file."""
    # Before a path stands no part of a URL, of another path or of a name with a dot.
    paths = re.findall(
        r"(?<![\w/.:-])((?:[\w.-]+/)+[\w.-]+\.(?:py|sql|npy|json|conf|yml|toml|md))(?![\w/])", page.read_text()
    )
    bases = (*PATH_ROOTS, page.parent)
    missing = {path for path in paths if not any((base / path).exists() for base in bases)}
    # A directory ends with a slash; a module is named with its dots.
    directories = [span for span in code_spans(page.read_text()) if re.fullmatch(r"[a-z_]+/(?:[\w.-]+/)*", span)]
    missing |= {path for path in directories if not any((base / path).is_dir() for base in bases)}
    modules = re.findall(r"\b((?:bench|tasks)(?:\.[a-z0-9_]+)+)\b", page.read_text())
    missing |= {name for name in modules if not _is_module(name)}

    assert missing == set()


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@by_page
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    """Given a link to another page or to a heading, I expect both to exist."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)

    assert broken == []


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_page
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    """Given the name of a test, or its beginning before three dots, I expect such a test."""
    text = page.read_text()
    named = re.findall(r"`(test_\w+?)(_?\.\.\.)?`", text)
    missing = [
        name
        for name, more in named
        if not any(test.startswith(name) if more else test == name for test in defined_tests())
    ]
    files = re.findall(r"(?<![\w/])((?:unit|integration|acceptance)/test_\w+)", text)
    missing += [file for file in files if not (ROOT / "tests" / f"{file}.py").exists()]

    assert missing == []


@by_page
def test_every_command_of_a_page_exists(page: Path) -> None:
    """Given a command of `ltm` or a target of make, I expect it to exist."""
    text = page.read_text()
    commands = set(typer.main.get_command(build_app()).commands)  # type: ignore[attr-defined]  # it is a group
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    code = [*code_spans(text), *re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)]
    used = {name for part in code for name in re.findall(r"(?<!user )\bltm ([a-z]+)", part)}
    made = {name for part in code for name in re.findall(r"(?:^|\s)make ([a-z]+)", part)}

    assert (used - commands, made - targets) == (set(), set())


def test_architecture_names_what_its_files_hold() -> None:
    """Given a constant or class in "Where to change what", I expect it in a file of its row, or as a setting."""
    section = between((DOCS / "architecture.md").read_text() + "\n## ", "\n## Where to change what\n", "\n## ")
    missing = []
    for row in table_rows(section):
        spans = [span for cell in row for span in code_spans(cell)]
        held = "".join((ROOT / span).read_text() for span in spans if "." in span and (ROOT / span).is_file())
        names = [span for span in spans if re.fullmatch(r"[A-Z]\w+", span)]
        missing += [name for name in names if name not in held and name.lower() not in Settings.model_fields]

    assert missing == []


def test_the_glossary_is_in_order() -> None:
    """Given the glossary, I expect each term once, in alphabetical order."""
    terms = [row[0].lower() for row in table_rows((DOCS / "glossary.md").read_text())]

    assert terms == sorted(set(terms))


def test_the_changelog_has_each_entry_once() -> None:
    """Given the changelog, I expect the project's version on top of those released, and no entry twice."""
    text = (ROOT / "CHANGELOG.md").read_text()
    entries = [" ".join(entry.split()) for entry in re.findall(r"^- (.+(?:\n  .+)*)", text, flags=re.MULTILINE)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert re.findall(r"^## (\S+) - (?!unreleased)", text, flags=re.MULTILINE)[0] == project["version"]
    assert [entry for entry, times in Counter(entries).items() if times > 1] == []


def test_the_hooks_before_a_commit_fetch_nothing() -> None:
    """Given the hooks of pre-commit, I expect local ones alone, run from .venv."""
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]

    assert [repository["repo"] for repository in repositories] == ["local"]
    entries = [hook["entry"] for repository in repositories for hook in repository["hooks"]]
    assert [entry for entry in entries if not entry.startswith(".venv/bin/")] == []
