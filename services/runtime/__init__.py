"""Runtime parts of every process: settings, logging, heartbeat, availability, Redis connections, backoff."""
