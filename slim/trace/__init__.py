"""Which channels of which layers stand or fall together: see `tracer` for how, `rules` for what each operator does."""

from slim.trace.classes import Classes
from slim.trace.tracer import Product, Trace, call, skeleton, trace

__all__ = ["Classes", "Product", "Trace", "call", "skeleton", "trace"]
