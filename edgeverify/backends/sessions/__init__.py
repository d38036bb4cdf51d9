"""One small interface to all implementations: prefill, decode, read the cache, rewind."""

from edgeverify.backends.sessions.session import Cache, Session

__all__ = ["Cache", "Session"]
