"""The fixtures of the small language model, and of a real one."""

from real_model import smollm2
from tiny_model import tiny_gguf, tiny_hf

__all__ = ["smollm2", "tiny_gguf", "tiny_hf"]
