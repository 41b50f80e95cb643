"""The chat service: asks the long-term memory, builds a prompt, replies. Its parts are usable alone."""
