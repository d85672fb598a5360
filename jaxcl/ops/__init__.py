"""Functions of arrays, independent of models, strategies and the training loop."""

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
