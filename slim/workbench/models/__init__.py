"""The paper's networks, and how a model's name becomes a model."""

from slim.workbench.models.build import arguments, build, names

__all__ = ["arguments", "build", "names"]
