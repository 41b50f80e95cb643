"""The OpenAI-compatible proxy: chat completions of another server, with what Keepsake remembers in their prompts."""
