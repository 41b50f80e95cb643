"""What every process is built on: settings, logging, heartbeat, availability, Redis connections, backoff."""
