"""The commands, against a running stack."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis
from keepsake_client import Client
from keepsake_client.protocol import encode_user_id

from services.long_term_memory.known_profile import NewSlot, write_slots
from services.long_term_memory.postgres.scope import Owner
from services.stack.processes import INDEXER, SERVERS, SERVICES
from tests.acceptance.conftest import INDEX_NICE, Stack
from tests.ltm_command import run_ltm, run_ltm_process
from tests.support import wait_until

#: What `ltm up` starts without an LLM.
STARTED = (*SERVERS, *SERVICES)


@pytest.fixture
def user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"


def ltm(stack: Stack, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return run_ltm(*arguments, stdin=stdin, REDIS_URL=stack.redis_url, DATABASE_URL=stack.database_url)


def test_up_reports_each_process_once_and_then_the_addresses(stack: Stack) -> None:
    lines = stack.printed().splitlines()

    answered = [line.split()[0] for line in lines if " answers " in line]
    assert sorted(answered) == sorted(STARTED)
    assert lines.index(next(line for line in lines if line.startswith("Keepsake is up"))) == len(STARTED)
    assert f"  Redis       {stack.redis_url}" in lines


def test_the_last_line_of_up_is_the_address_of_the_console(stack: Stack) -> None:
    """Given a stack with a gateway, I expect its console's address after all else, also in `ltm status`."""
    wait_until(lambda: "Console: " in stack.printed(), description="the last line")
    lines = stack.printed().splitlines()
    console = f"{stack.ready['gateway_url']}/"

    assert lines[lines.index(next(line for line in lines if "Ctrl-C stops" in line)) + 1] == f"Console: {console}"
    assert f"(console {console})" in ltm(stack, "status").stdout


def test_the_ready_file_holds_the_pid_of_each_process(stack: Stack) -> None:
    assert sorted(stack.pids) == sorted(STARTED)
    assert all(psutil.Process(pid).ppid() == stack.process.pid for pid in stack.pids.values())


def test_indexing_alone_has_a_lower_cpu_priority(stack: Stack) -> None:
    autogroups = {name: Path(f"/proc/{pid}/autogroup") for name, pid in stack.pids.items()}
    if not autogroups[INDEXER].exists():
        pytest.skip("this kernel has no autogroup scheduling")

    # "/autogroup-12 nice 1"
    assert {name: int(file.read_text().split()[-1]) for name, file in autogroups.items()} == {
        name: INDEX_NICE if name == INDEXER else 0 for name in STARTED
    }
    assert psutil.Process(stack.pids[INDEXER]).nice() == stack.nice + INDEX_NICE


def test_the_demo_prints_every_step_of_every_turn_in_both_languages(stack: Stack) -> None:
    result = ltm(stack, "demo")

    assert result.returncode == 0, result.stdout + result.stderr
    turns = re.split(r"^user> ", result.stdout, flags=re.MULTILINE)[1:]
    for step in ("stored", "indexed", "searched", "found", "replied"):
        assert all(re.search(rf"^  {step}  ", turn, re.MULTILINE) for turn in turns), step
    chinese = [turn for turn in turns if re.match(r"[\u4e00-\u9fff]", turn)]
    assert len(chinese) >= 3
    assert len(turns) - len(chinese) >= 3
    assert len(re.findall(r"^  remembered  ", result.stdout, re.MULTILINE)) == 4


def test_a_demo_without_a_stack_names_the_step_that_failed(stack: Stack) -> None:
    # Given no Redis at the address
    result = run_ltm("demo", REDIS_URL="redis://127.0.0.1:1/0")

    assert result.returncode == 1
    assert "step 'connected'" in result.stderr


def test_status_succeeds_when_every_process_works(stack: Stack) -> None:
    result = ltm(stack, "status")

    assert result.returncode == 0, result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[: len(STARTED)]] == list(STARTED)
    assert "DOWN" not in result.stdout
    engines = re.findall(
        r"^long-term-memory-(\w+) +answers: embedder engine (\w+)(?:;.*)?$", result.stdout, re.MULTILINE
    )
    assert dict(engines) == dict.fromkeys(("worker", "writer", "indexer"), "int8")
    assert re.search(r"^queue index +waiting \d+ +working \d+ +delayed \d+ +dead \d+$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", STARTED)
def test_status_of_one_process_is_its_health_check(stack: Stack, name: str) -> None:
    assert ltm(stack, "status", name).returncode == 0


def test_status_without_redis_fails_with_a_report() -> None:
    result = run_ltm("status", REDIS_URL="redis://127.0.0.1:1/0")

    assert result.returncode == 1
    assert re.search(r"^redis +DOWN", result.stdout, re.MULTILINE)
    assert result.stderr == ""


def test_an_added_memory_is_found(stack: Stack, user: str) -> None:
    added = ltm(stack, "add", user, "I play the cello.")
    found = ltm(stack, "search", user, "which instrument do I play?")

    assert added.returncode == 0, added.stderr
    assert "I play the cello." in added.stdout
    assert re.fullmatch(r"-?\d\.\d\d  \d{4}-\d\d-\d\d  user  I play the cello\.\n", found.stdout)


def test_a_context_is_shown_as_a_prompt_has_it(stack: Stack, user: str) -> None:
    nothing = ltm(stack, "context", user, "which instrument do I play?")
    ltm(stack, "profile", user, "--set", 'name="Anna"')
    ltm(stack, "add", user, "I play the cello.")
    known = ltm(stack, "context", user, "which instrument do I play?", "--max-chars", "2000")
    short = ltm(stack, "context", user, "which instrument do I play?", "--max-chars", "20")

    assert (nothing.returncode, nothing.stdout) == (0, "nothing is known of this user\n")
    assert (short.returncode, short.stdout) == (0, "no room for what is known\n")
    assert known.returncode == 0, known.stderr
    assert '<profile>\n{"name": "Anna"}\n</profile>\n' in known.stdout
    assert re.search(r'<memories>\n\{.*"quote": "I play the cello\."\}\n</memories>\n$', known.stdout)


def test_a_search_can_be_printed_as_json(stack: Stack, user: str) -> None:
    response = json.loads(ltm(stack, "search", user, "anything?", "--json").stdout)

    assert (response["user_id"], response["success"], response["memories"]) == (user, True, [])


def test_a_terminal_of_gbk_shows_what_it_has(stack: Stack, user: str) -> None:
    result = run_ltm_process("add", user, "我养了一只🐈", REDIS_URL=stack.redis_url, encoding="gbk")

    assert (result.returncode, result.stderr) == (0, "")
    assert "我养了一只?" in result.stdout


def test_a_profile_is_updated_and_printed(stack: Stack, user: str) -> None:
    ltm(stack, "profile", user, "--set", 'name="安娜"', "--set", "age=30")
    ltm(stack, "profile", user, "--set", "age=null")

    result = ltm(stack, "profile", user)

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"name": "安娜"}
    assert "安娜" in result.stdout


def test_an_error_response_is_one_line_and_a_failure(stack: Stack) -> None:
    result = ltm(stack, "add", " ", "no user")

    assert result.returncode == 1
    assert result.stderr.startswith("ltm: invalid_request: user_id")


def test_chat_remembers_across_sessions(stack: Stack, user: str) -> None:
    first = ltm(stack, "chat", "--user", user, stdin="My dog is called Biscuit.\n/memories\n/quit\nnever said\n")
    wait_until(lambda: "Biscuit" in ltm(stack, "search", user, "dog").stdout, description="the message to be indexed")

    second = ltm(stack, "chat", "--user", user, stdin="What is my dog called?\n/memories\n")

    assert first.returncode == 0, first.stdout
    assert first.stdout.count("bot> ") == 1
    assert "none were used" in first.stdout
    reply, memories = second.stdout.split("bot> ")[1].split("\n", 1)
    assert "Biscuit" in reply + memories
    assert re.search(r"^  \d\.\d\d .* My dog is called Biscuit\.$", second.stdout, re.MULTILINE)


def test_chat_says_why_a_message_was_rejected(stack: Stack, user: str) -> None:
    result = ltm(stack, "chat", "--user", user, stdin="x" * 3_000_000 + "\n/help\n")

    assert result.returncode == 1
    rejected, hint = result.stdout.splitlines()
    assert rejected.startswith("  rejected: too_large: ")
    assert "/quit" in hint


def test_one_id_leads_from_the_message_to_its_answer_and_reply(stack: Stack, user: str) -> None:
    """Given a message with the task of its publisher, I expect from each id the same records, and one turn: the search
    with its query, the prompt, the reply, and that this reply is not to be remembered."""
    question = "What is my parrot called?"

    def traced(identifier: str) -> dict[str, dict[str, Any]]:
        found = json.loads(ltm(stack, "trace", identifier, "--json").stdout)
        return {"remembered" if record.get("reply_to") else record["kind"]: record for record in found["records"]}

    def asked(asker: str) -> dict[str, dict[str, Any]]:
        with redis.Redis.from_url(stack.redis_url) as client:
            message = {"user_id": asker, "content": question, "type": "text", "task_id": f"t-{asker}"}
            client.lpush("user_input_queue", json.dumps(message))
        wait_until(lambda: len(traced(f"t-{asker}")) == 4, 30, "the records of all four")
        return traced(f"t-{asker}")

    def turn_of(by_task: dict[str, dict[str, Any]]) -> dict[str, Any]:
        found = json.loads(ltm(stack, "trace", by_task["remembered"]["message_id"], "--json").stdout)
        return dict(found["turn"])

    # A search that has waited for a busy worker is not explained, on a busy machine: then another user asks.
    for number in range(10):
        by_task = asked(asker := f"{user}-{number}")
        turn = turn_of(by_task)
        (search,) = turn["searches"]
        if "cut" in search["record"]:
            break

    reply, request, indexed = by_task["reply"], by_task["request"], by_task["message"]
    assert traced(reply["message_id"]) == traced(request["request_id"]) == by_task
    assert (indexed["message_id"], request["request_id"]) == (reply["message_id"], reply["request_id"])
    assert list(indexed["times"]) == ["said", "logged", "dispatched", "started", "indexed"]
    assert list(request["times"]) == ["pushed", "taken", "queued", "started", "answered"]
    assert list(reply["times"]) == ["asked", "searched", "replied"]
    assert {"embed_ms", "rank_ms"} <= set(request["ms"])
    assert "parrot" not in json.dumps(by_task)
    assert (turn["user"], turn["text"], search["record"]["query"]) == (asker, question, question)
    assert (search["record"]["candidates"], search["record"]["cut"]["limit"]) == ([], 5)
    assert turn["reply_record"]["prompt"][-1] == {"role": "user", "content": question}
    assert turn["reply_record"]["reply"] == "I do not remember anything about that yet."
    assert (turn["reply_memory"]["state"], turn["reply_memory"]["why"]) == ("not_remembered", "not_to_be_remembered")
    assert turn["missing"] == []


def test_an_id_that_never_arrived_is_not_known(stack: Stack) -> None:
    result = ltm(stack, "trace", "never-sent")

    assert (result.returncode, result.stdout.split(":")[0]) == (1, "nothing is known of never-sent")


def test_the_logs_of_an_ephemeral_stack_are_shown(stack: Stack) -> None:
    lines = [json.loads(line) for line in ltm(stack, "logs", "long-term-memory-adapters").stdout.splitlines()]

    assert "adapters_ready" in [line["event"] for line in lines]
    assert {line["process"] for line in lines} == {"long-term-memory-adapters"}


def test_a_killed_process_is_restarted_and_reported(stack: Stack) -> None:
    os.kill(stack.pids["long-term-memory-writer"], signal.SIGKILL)

    def reported_again() -> bool:
        return len(re.findall(r"^long-term-memory-writer +answers", stack.printed(), re.MULTILINE)) == 2

    wait_until(reported_again, description="the writer to answer again")
    assert '"name": "long-term-memory-writer"' in stack.printed()
    assert "process_restarted" in stack.printed()
    assert all(ltm(stack, "status", name).returncode == 0 for name in SERVICES)


def test_an_export_is_imported_for_another_user(stack: Stack, user: str, tmp_path: Path) -> None:
    """Given what a user added, I expect it in a file that only its owner can read, and found after an import."""
    file = tmp_path / "u.jsonl"
    assert ltm(stack, "add", user, "My cat is called Mochi").returncode == 0
    assert ltm(stack, "profile", user, "--set", 'name="Anna"').returncode == 0

    exported = ltm(stack, "export", user, str(file))

    assert exported.returncode == 0, exported.stderr
    assert exported.stderr == f"ltm: 1 memory and 1 profile in {file}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["kind"] for record in records] == ["profile", "profile_change", "memory"]
    assert "exists" in ltm(stack, "export", user, str(file)).stderr
    assert ltm(stack, "export", user, "-").stdout == file.read_text()

    with Client(stack.redis_url) as client:
        imported = client.user_import(f"{user}-2", records, deadline_ms=30_000)
        [memory] = client.search(f"{user}-2", "What is my cat called?", deadline_ms=10_000)

    assert (imported.count, imported.known, memory.content) == (1, 0, "My cat is called Mochi")


def test_why_a_slot_is_what_it_is(stack: Stack, user: str) -> None:
    """Given a slot of two values, one after the other, I expect both with their words, the present one first."""
    with Client(stack.redis_url) as client, psycopg.connect(stack.database_url) as database:
        said = (
            ("home", "Oslo", 1_700_000_000.0),
            ("home", "Lisbon", 1_710_000_000.0),
            ("name", "Anna", 1_710_000_000.0),
        )
        for slot, value, said_at in said:
            text = f"I live in {value}" if slot == "home" else f"I am {value}"
            [memory] = client.add(user, text, deadline_ms=30_000).memories
            write_slots(database, Owner(encode_user_id(user)), [NewSlot(slot, value, [memory.id], said_at)])
            database.commit()

    shown = ltm(stack, "profile", user, "--why", "home")
    as_json = json.loads(ltm(stack, "profile", user, "--why", "home", "--json").stdout)

    lines = shown.stdout.splitlines()
    assert [line.split("  ")[-1] for line in lines] == ["Lisbon", "I live in Lisbon", "Oslo", "I live in Oslo"], shown
    assert lines[0].startswith("2024-03-09")
    assert as_json["present"]["value"] == "Lisbon"
    assert [value["words"][0]["content"] for value in as_json["values"]] == ["I live in Lisbon", "I live in Oslo"]
    assert ltm(stack, "profile", user, "--why", "work").returncode == 2

    with Client(stack.redis_url) as client:
        client.memory_delete(user, ids=[as_json["values"][0]["words"][0]["id"]], deadline_ms=10_000)
        again = ltm(stack, "profile", user, "--why", "home").stdout.splitlines()
        client.memory_delete(user, ids=[as_json["values"][1]["words"][0]["id"]], deadline_ms=10_000)
        gone = ltm(stack, "profile", user, "--why", "home").stdout.splitlines()

    assert [line.split("  ")[-1] for line in again] == ["Oslo", "I live in Oslo"]
    assert gone[0].endswith("deleted with the messages that said it")


EXPORTS = Path(__file__).parents[1] / "data" / "imports"


@pytest.mark.parametrize(
    ("name", "options", "query", "found"),
    [
        ("chatgpt.json", [], "Who gets married in Porto?", "My sister Anna gets married in Porto on 14 June."),
        (
            "character-ai-histories.json",
            [],
            "What did I build with my grandfather?",
            "I built a radio with my grandfather",
        ),
        ("sillytavern.jsonl", [], "What am I allergic to?", "I am allergic to walnuts"),
        ("discord.json", ["--me", "Lena"], "When is my birthday?", "My birthday is on the 3rd of May."),
        ("telegram-full.json", [], "When does my passport expire?", "Passport expires in March 2027"),
        ("whatsapp-android-de.txt", ["--room"], "Wo ist die neue Stelle?", "Ich habe ab September eine neue Stelle"),
        ("plain.csv", ["--map", "content=said,timestamp=date,source=who"], "Which instrument?", "I play the cello"),
        ("keepsake.jsonl", [], "What do I drink?", "I drink oolong, never coffee."),
    ],
)
def test_an_export_of_each_form_becomes_memories_once(
    name: str, options: list[str], query: str, found: str, stack: Stack, user: str
) -> None:
    """Given an export, imported twice, I expect its memories to be found, and none to be new the second time."""
    first = ltm(stack, "import", user, str(EXPORTS / name), *options)
    second = ltm(stack, "import", user, str(EXPORTS / name), *options)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    new, known = (int(re.findall(r"(\d+) memories are new", one.stdout)[0]) for one in (first, second))
    assert new > 0
    assert known == 0
    assert f"{new} were there" in second.stdout
    with Client(stack.redis_url) as client:
        memories = client.search(user, query, limit=100, min_score=0, deadline_ms=10_000)  # not how it is ranked
    [imported] = [memory for memory in memories if memory.content.startswith(found)]
    assert imported.timestamp < time.time() - 86_400


def test_what_was_deleted_is_imported_again_on_request_alone(stack: Stack, user: str) -> None:
    """Given an imported memory that was deleted, I expect a second import to leave it out, unless it is asked for."""
    path = str(EXPORTS / "sillytavern.jsonl")
    assert "4 memories are new, 0 were there" in ltm(stack, "import", user, path).stdout
    with Client(stack.redis_url) as client:
        [walnuts] = client.request("memory_list", user, {"filters": {"contains": "walnuts"}}).memories
        assert client.request("memory_delete", user, {"ids": [walnuts.id]}).count == 1

    again, restored = ltm(stack, "import", user, path), ltm(stack, "import", user, path, "--restore-deleted")

    assert "0 memories are new, 3 were there, 1 stay deleted (--restore-deleted)" in again.stdout
    assert "1 memories are new, 3 were there\n" in restored.stdout
