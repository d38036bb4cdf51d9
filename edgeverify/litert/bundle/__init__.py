"""Handles the .litertlm container: reading, writing, its metadata, what the engine accepts."""
