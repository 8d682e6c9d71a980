"""What a run's page needs and the run itself didn't save, measured once and kept in the run's evidence.json.

`networks`  the run's networks and data, from its files
`layers`    every layer before and after, what is tied, what was held back
`gamma`     |γ| of every channel when it was decided on, and the threshold
`tradeoff`  accuracy against ratio, right after pruning
`latency`   times of single runs, and what each operator takes
`weights`   kernels as small images
`examples`  test images on which the two networks disagree
"""

from slim.workbench.run.evidence.gather import gather

__all__ = ["gather"]
