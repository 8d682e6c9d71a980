"""What a network costs where it will run: measured in onnxruntime, predicted for any numbers of channels.

`settings` says where it runs, `operators` what it runs, `kernels` times single operators, `staircase` fits what a
number of channels costs, `model` puts these together and keeps measured times, `knapsack` picks channels by value for
cost, `measure` times whole networks and corrects a plan until it keeps its budget.
"""

from slim.runtime.settings import Runtime as Runtime
from slim.runtime.settings import read_latency as read_latency
