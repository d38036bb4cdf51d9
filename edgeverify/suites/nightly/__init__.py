"""The nightly run: a matrix of checks, in processes of their own, into one report.

``matrix`` reads what is asked for, ``plan`` keys, sizes and splits it, ``run`` has it done,
``store`` keeps what is done, ``document`` makes one report of it, and ``changed`` tells which ports
a change touches. Nothing here imports torch but ``work``, which is the child's side.
"""
