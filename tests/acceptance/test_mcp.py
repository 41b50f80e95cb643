"""MCP on the real stack: `ltm mcp` as a host starts it, the gateway's `/mcp`, and the configurations in examples/."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_types import CallToolResult

from services.gateway.access import ALL_RIGHTS, Caller
from services.gateway.app import OpenDoor
from tests.acceptance.conftest import Stack
from tests.acceptance.test_commands import ltm
from tests.ltm_command import LTM, clean_environment
from tests.mcp_clients import connected, served_mcp
from tests.served_gateway import Keys
from tests.support import eventually

READS = ("search_", "get_", "list_")
EXAMPLES = Path(__file__).parents[2] / "examples" / "mcp"


@pytest.fixture
def user() -> str:
    return f"用户-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def started(log: Path, command: str, *arguments: str, **environment: str) -> AsyncIterator[Client]:
    """A client of a command that speaks MCP on stdin and stdout."""
    variables = clean_environment(**environment)
    with log.open("a") as errors:
        server = StdioServerParameters(command=command, args=list(arguments), env=variables)
        async with Client(stdio_client(server, errlog=errors)) as client:
            yield client


@asynccontextmanager
async def client_of(transport: str, stack: Stack, user: str, log: Path) -> AsyncIterator[Client]:
    """A client of the user's memory, by either transport."""
    if transport == "stdio":
        async with started(log, LTM, "mcp", "--user", user, REDIS_URL=stack.redis_url) as client:
            yield client
    else:
        async with (
            served_mcp(stack.redis_url, OpenDoor()) as url,
            connected(url, mode="legacy", X_Keepsake_User=user) as client,
        ):
            yield client


async def call(client: Client, name: str, **arguments: Any) -> dict[str, Any]:
    """The structured content of a call that succeeds; a read is repeated while the machine is too slow for it."""

    async def answered() -> CallToolResult | None:
        result = await client.call_tool(name, arguments)
        late = name.startswith(READS) and result.is_error and "timeout: " in str(result.content)
        return None if late else result

    result = await eventually(answered, description=f"an answer to {name}")
    assert result is not None
    assert not result.is_error, result
    content: dict[str, Any] = result.structured_content
    return content


async def failure(client: Client, name: str, **arguments: Any) -> str:
    """The words of a call that fails."""
    result = await client.call_tool(name, arguments)
    assert result.is_error, result
    (block,) = result.content
    assert block.type == "text"
    return block.text


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_a_model_adds_finds_corrects_and_forgets(stack: Stack, user: str, transport: str, tmp_path: Path) -> None:
    """Given a client of the SDK, I expect each tool to do what it says, on the memory of its user alone."""

    async def story() -> None:
        async with client_of(transport, stack, user, tmp_path / "log") as client:
            added = await call(client, "add_memory", content="My cat is called Tofu.")
            cat = added["memory"]["id"]
            (found,) = (await call(client, "search_memories", query="What is my cat called?"))["memories"]
            assert (found["id"], found["quote"], found["said_by"]) == (cat, "My cat is called Tofu.", "user")

            await call(client, "correct_memory", id=cat, content="My cat is called Mochi.")
            context = await call(client, "get_context", message="What is my cat called?")
            assert '"quote": "My cat is called Mochi."' in context["context"]

            await call(client, "add_memory", content="我喜欢喝绿茶。")
            page = await call(client, "list_memories", limit=1, order="oldest")
            rest = await call(client, "list_memories", limit=1, order="oldest", cursor=page["next_cursor"])
            assert [memory["quote"] for memory in page["memories"] + rest["memories"]] == [
                "My cat is called Mochi.",
                "我喜欢喝绿茶。",
            ]
            assert "next_cursor" not in rest

            profile = await call(client, "update_profile", updates={"name": "Anna", "age": None})
            assert (profile["profile"], profile["version"]) == ({"name": "Anna"}, 1)
            assert await call(client, "get_profile") == profile
            refused = await failure(client, "update_profile", updates={"name": "Berta"}, expected_version=0)
            assert refused.startswith("conflict: ")

            assert await call(client, "forget_memory", id=cat) == {"forgotten": cat}
            assert (await failure(client, "forget_memory", id=cat)).startswith("not_found: ")
            assert (await call(client, "list_memories", contains="cat"))["memories"] == []

    asyncio.run(story())


def test_a_memory_of_another_user_is_not_found(stack: Stack, user: str, tmp_path: Path) -> None:
    """Given the id of another user's memory, I expect `not_found` of both tools that take one, and the memory kept."""
    ltm(stack, "add", user, "My cat is called Tofu.")
    (memory,) = json.loads(ltm(stack, "memories", user, "--json").stdout)["memories"]

    async def story() -> None:
        async with client_of("http", stack, f"{user}-2", tmp_path / "log") as other:
            for name, arguments in (("correct_memory", {"content": "x"}), ("forget_memory", {})):
                assert (await failure(other, name, id=memory["id"], **arguments)).startswith("not_found: ")

    asyncio.run(story())

    assert "My cat is called Tofu." in ltm(stack, "memories", user).stdout


def test_the_commands_of_the_examples_start_servers(stack: Stack, user: str, tmp_path: Path) -> None:
    """Given the configurations in examples/mcp/, I expect the command of one to serve the same memory as the URL of
    the other, with the user of each."""
    command = json.loads((EXAMPLES / "stdio.json").read_text())["mcpServers"]["keepsake"]
    remote = json.loads((EXAMPLES / "http.json").read_text())["mcpServers"]["keepsake"]
    environment = {**command["env"], "REDIS_URL": stack.redis_url, "PATH": str(Path(sys.executable).parent)}
    arguments = [user if argument == "me" else argument for argument in command["args"]]
    scheme, key = remote["headers"]["Authorization"].split()
    assert (scheme, remote["url"].endswith(":18380/mcp")) == ("Bearer", True)
    (named,) = (name for name, value in remote["headers"].items() if value == "me")

    async def story() -> None:
        async with started(tmp_path / "log", command["command"], *arguments, **environment) as client:
            await call(client, "add_memory", content="My cat is called Tofu.")
        async with (
            served_mcp(stack.redis_url, Keys({key: Caller("key", ALL_RIGHTS)})) as url,
            connected(url, key, **{named.replace("-", "_"): user}) as client,
        ):
            (found,) = (await call(client, "list_memories"))["memories"]
            assert found["quote"] == "My cat is called Tofu."

    asyncio.run(story())


def test_a_model_may_be_let_look_alone(stack: Stack, user: str, tmp_path: Path) -> None:
    """Given `--may search,read` and a character, I expect the tools that change nothing, and the log off stdout."""

    async def story() -> None:
        options = ("--user", user, "--agent", "luna", "--may", "search, read")
        async with started(tmp_path / "log", LTM, "mcp", *options, REDIS_URL=stack.redis_url) as client:
            tools = (await client.list_tools()).tools
            assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)
            assert len(tools) == 4
            assert (await failure(client, "add_memory", content="x")).startswith("forbidden: ")

    asyncio.run(story())

    (line,) = (tmp_path / "log").read_text().splitlines()
    assert (json.loads(line)["event"], json.loads(line)["code"]) == ("tool_failed", "forbidden")
