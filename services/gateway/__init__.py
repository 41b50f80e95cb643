"""The gateway: HTTP, MCP, an OpenAI-compatible proxy and Mem0's routes, for programs that do not speak Redis."""
