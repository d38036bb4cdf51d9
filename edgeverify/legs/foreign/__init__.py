"""Checks files that edgeverify did not convert: what they are, and if they match the reference."""
