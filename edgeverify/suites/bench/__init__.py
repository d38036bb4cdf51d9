"""Measures a file's speed and memory: ``worker`` measures one file, ``run`` measures all."""
