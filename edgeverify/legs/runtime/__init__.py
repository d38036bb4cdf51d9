"""The leg ``runtime``: runs the same file in other runtimes than the LiteRT interpreter."""
