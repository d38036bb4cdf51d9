"""The cache: content-addressed entries, who uses them, and their upkeep."""
