"""The command line and the pytest plugin: options in, reports out."""
