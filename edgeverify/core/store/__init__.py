"""The cache: content-addressed entries, leases of the processes that use them, and upkeep."""
