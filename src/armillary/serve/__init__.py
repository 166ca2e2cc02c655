"""A server with OpenAI's API over an inference engine: continuous batching, streaming, metrics, and a graceful end.

Out of scope: encryption (put a proxy in front), several models at a time, and constrained decoding.
"""

from armillary.serve.options import Listening, ServeOptions
from armillary.serve.server import serve

__all__ = ["Listening", "ServeOptions", "serve"]
