"""One thread for every test of the room, the ranks of the parallel room's tests, and a small Llama."""

import torch

from parallel.conftest import on_ranks
from tiny_model import tiny_hf

__all__ = ["on_ranks", "tiny_hf"]

torch.set_num_threads(1)
