"""Files from outside are opened and run in a child process, which may crash, hang or end.

A damaged .tflite can take the process down that opens it: the runtime does not check offsets and
sizes. What happens to the child becomes an ``ArtifactError`` with the file's name.
"""

from edgeverify.litert.contained.child import SECONDS, Child, EndedError, call

__all__ = ["SECONDS", "Child", "EndedError", "call"]
