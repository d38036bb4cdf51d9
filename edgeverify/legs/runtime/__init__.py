"""The leg ``runtime``: the same file in other runtimes than the LiteRT interpreter."""
