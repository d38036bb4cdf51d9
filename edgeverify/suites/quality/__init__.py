"""Measures the quality that quantization costs: a file's next-token distribution compared with
the reference's.

``statistics`` compares and estimates, ``text`` gives the tokens, ``gate`` judges, ``run`` does a
whole evaluation, ``tables`` shows it.
"""
