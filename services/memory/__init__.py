"""The memory service: stores what users and the AI say, and publishes it on `memory_updates`."""
