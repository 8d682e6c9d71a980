"""The paper's networks, and how a model's name, or its file, becomes a model."""

from slim.workbench.models.build import arguments, build, names
from slim.workbench.models.load import load

__all__ = ["arguments", "build", "load", "names"]
