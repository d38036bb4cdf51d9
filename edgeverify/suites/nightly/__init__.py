"""The nightly run: checks a matrix of cases in separate processes and writes one report.

``matrix`` reads which cases to check; ``plan`` gives them keys, sizes and shards; ``run`` runs
them; ``store`` keeps finished cases; ``document`` makes one report of them; ``changed`` lists the
ports that a change touches. Only ``child``, the child process's side, imports torch.
"""
