"""Opens and runs files from outside in a child process, which may crash, hang or exit.

A damaged .tflite can crash the process that opens it, because the runtime does not check offsets
and sizes. The child's end becomes an ``ArtifactError`` with the file's name.
"""

from edgeverify.litert.contained.child import SECONDS, Child, EndedError, call

__all__ = ["SECONDS", "Child", "EndedError", "call"]
