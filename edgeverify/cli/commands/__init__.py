"""Commands that have a module of their own; ``cli`` adds each of them to its parser.

A command's module is imported whenever the parser is built, and so imports nothing heavy itself.
"""
