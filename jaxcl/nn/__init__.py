"""All code that depends on Flax and Equinox: layers, models, captures, inspection."""

from jaxcl.nn import capture, inspection, layers, models
from jaxcl.nn.tagged import conv, dense

__all__ = ["capture", "conv", "dense", "inspection", "layers", "models"]
