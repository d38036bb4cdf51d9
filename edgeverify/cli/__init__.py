"""The command line and the pytest plugin: they take options and show reports."""
