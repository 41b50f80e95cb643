"""Mem0's routes on the wire: for programs that use Mem0's clients, or the routes of its open source server."""
