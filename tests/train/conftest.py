"""One thread for every test of the room, and the ranks of the parallel room's tests."""

import torch

from parallel.conftest import on_ranks

__all__ = ["on_ranks"]

torch.set_num_threads(1)
