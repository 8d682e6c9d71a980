"""All of slim's own rules, registered by the import of this module; what users register comes after them."""

from slim.trace.rules import folding, gathering, making, mixing, moving, pointwise
from slim.trace.rules.registry import rule, rule_for

__all__ = ["folding", "gathering", "making", "mixing", "moving", "pointwise", "rule", "rule_for"]
