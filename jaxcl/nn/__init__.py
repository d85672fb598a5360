"""All that knows Flax: layers, models, the capture of layers, and inspection."""

from jaxcl.nn import capture, inspection, layers, models

__all__ = ["capture", "inspection", "layers", "models"]
