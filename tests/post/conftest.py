"""What tests of post-training share: a tiny model's folder."""

from tiny_model import tiny_gguf, tiny_hf

__all__ = ["tiny_gguf", "tiny_hf"]
