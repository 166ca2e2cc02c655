"""The fixtures of the small language model."""

from tiny_model import tiny_gguf, tiny_hf

__all__ = ["tiny_gguf", "tiny_hf"]
