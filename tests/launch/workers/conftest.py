"""One thread for every test of the room."""

import torch

torch.set_num_threads(1)
