"""Data sets, and fast batches of them.

Every data set becomes three splits (train, val, test) of uint8 images of one size. What fits is decoded once and lives
on the device that trains; what doesn't is streamed from its files by worker processes. Either way batches are
augmented and normalised on the device, as whole tensors, and are the same bit for bit: every draw follows from a seed
and from the position in the epoch, so that an epoch can be entered at any step, by any number of processes.
"""

from slim.workbench.data.augment import crop
from slim.workbench.data.epoch import batches, steps_per_epoch
from slim.workbench.data.feed import Batch, Data, Feed, feed, ordered, sample_inputs
from slim.workbench.data.loaders import Loaders
from slim.workbench.data.sources import SOURCES, is_labelled, load, load_any, takes_size
from slim.workbench.data.splits import Dataset, Split, spec_of, statistics

__all__ = [
    "SOURCES",
    "Batch",
    "Data",
    "Dataset",
    "Feed",
    "Loaders",
    "Split",
    "batches",
    "crop",
    "feed",
    "is_labelled",
    "load",
    "load_any",
    "ordered",
    "sample_inputs",
    "spec_of",
    "statistics",
    "steps_per_epoch",
    "takes_size",
]
