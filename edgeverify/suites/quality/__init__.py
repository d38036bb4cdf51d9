"""What a quantized file costs in quality: its next-token distribution against the reference's.

``statistics`` compares and estimates, ``text`` gives the tokens, ``gate`` judges, ``run`` knows the
whole line, ``tables`` shows it.
"""
