"""What every test file needs: this folder on the path, and one thread, so that small tests don't fight over cores."""

import torch

torch.set_num_threads(1)
