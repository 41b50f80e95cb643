"""The memory service: stores the messages of users and the AI, and publishes them on `memory_updates`."""
