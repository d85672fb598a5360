"""Functions of arrays: they know no model, no strategy and no training loop."""

from jaxcl.ops import (
    convolution,
    decompositions,
    gates,
    linalg,
    memory,
    projection,
    sampling,
    trees,
)

__all__ = [
    "convolution",
    "decompositions",
    "gates",
    "linalg",
    "memory",
    "projection",
    "sampling",
    "trees",
]
