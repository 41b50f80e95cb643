"""The OpenAI-compatible proxy with the real memory behind it: what one conversation says, the next one knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

from pydantic import SecretStr

from services.gateway.proxy.door import add_proxy
from tests.acceptance.conftest import Stack
from tests.acceptance.test_examples import wait_until_found
from tests.integration.scripted_upstream import ScriptedUpstream, stream
from tests.served_gateway import served, settings_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_proxy.py"


def run_example(gateway: str, user: str, stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), user, "a-model"],
        env={"PATH": os.environ["PATH"], "OPENAI_BASE_URL": f"{gateway}/openai/v1", "PYTHONIOENCODING": "utf-8"},
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_the_next_conversation_knows_what_this_one_says(stack: Stack) -> None:
    """Given a chat through the proxy, I expect both of its turns in the prompt of another one, and no third."""
    user = f"用户-{uuid.uuid4().hex[:8]}"
    with (
        ScriptedUpstream(stream("Mochi is a good ", "name for a cat.")) as upstream,
        served(settings_of(stack.redis_url, chat_base_url=SecretStr(upstream.url)), [add_proxy]) as gateway,
    ):
        first = run_example(gateway, user, "My cat is called Mochi.\n")
        assert (first.stdout, first.stderr) == ("Mochi is a good name for a cat.\n", "")
        wait_until_found(stack, user, "What is my cat called?", "My cat is called Mochi.")
        wait_until_found(stack, user, "What is a good name for a cat?", "Mochi is a good name for a cat.")

        assert run_example(gateway, user, "What is my cat called?\n").returncode == 0

        before, after = (json.loads(received.body)["messages"] for received in upstream.received)
        assert [message["role"] for message in before] == ["user"]
        assert [message["role"] for message in after] == ["system", "user"]
        assert '"said_by": "user", "quote": "My cat is called Mochi."' in after[0]["content"]
        assert '"said_by": "assistant", "quote": "Mochi is a good name for a cat."' in after[0]["content"]


def test_the_example_without_a_gateway_fails_in_words() -> None:
    """Given no gateway at the base URL, I expect one line that says so."""
    done = run_example("http://127.0.0.1:1", "anna", "Hi\n")

    assert (done.returncode, done.stderr) == (1, "Connection error.\n")
