"""A chat in the terminal with OpenAI's client: with the base URL of Keepsake's proxy, it has a memory.

    OPENAI_API_KEY=sk-… python examples/openai_proxy.py anna gpt-5-mini

It reads the messages of one user from standard input, a line each, and forgets the conversation at its end: what the
next one knows of it, it has from Keepsake. It needs `pip install openai` alone, and a gateway at OPENAI_BASE_URL. With
keys, OPENAI_API_KEY is one of Keepsake's; without, the gateway passes it on to the server of the model.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI, OpenAIError


def main(user: str, model: str) -> None:
    """Answer each line of standard input."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:18380/openai/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    messages = []
    for line in map(str.strip, sys.stdin):
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        reply = ""
        for chunk in client.chat.completions.create(model=model, messages=messages, user=user, stream=True):
            text = chunk.choices[0].delta.content if chunk.choices else None
            print(text or "", end="", flush=True)
            reply += text or ""
        print(flush=True)
        messages.append({"role": "assistant", "content": reply})


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OpenAIError as error:
        sys.exit(str(error))
