"""MCP server: the memory of one user as tools for a model, over streamable HTTP and stdio."""
