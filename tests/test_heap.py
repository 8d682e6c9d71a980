"""What a training step's memory costs the system, counted in page faults."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from slim.train.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()

torch.set_num_threads(1)
layers = [m for _ in range(4) for m in (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.BatchNorm2d(16))]
model = torch.nn.Sequential(*layers)
images = torch.randn(64, 16, 32, 32)

def step():
    model(images).sum().backward()

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has the setting")
def test_freed_memory_is_used_again() -> None:
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, check=True).stdout)

    returned, kept = faults("return"), faults("keep")
    assert returned > 20_000  # in 4 steps; each of the 8 results has 1,024 pages of 4 kB
    assert kept < 0.1 * returned
