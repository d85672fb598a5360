"""The bench's networks in PyTorch, and the time of their steps."""

from __future__ import annotations

import time
from typing import Any

from jaxcl.nn import models
from jaxcl.nn.efficientnet import EfficientNetLite0

from .cases import Case
from .timers import Timer


def torch_step(case: Case) -> Timer | None:
    """The same network, batch and optimizer in PyTorch; None if it is not installed."""
    try:
        import torch

        net = _torch_net(case)
    except ImportError:
        return None
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = net.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    n, (h, w, c) = case.batch * 40, case.shape
    flat = case.stream == "permuted"
    x = torch.randn(n, h * w * c) if flat else torch.randn(n, c, h, w)
    x, y = x.to(device), (torch.arange(n) % 10).to(device)
    if not net.training:  # the published network is faster with channels last
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    steps = max(5, min(case.steps, 500))

    def timed() -> float:
        order = torch.randperm(n, device=device)
        start = time.perf_counter()
        for i in range(steps):
            batch = order[torch.arange(i * case.batch, (i + 1) * case.batch) % n]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    timed()  # a warm-up: in its first steps PyTorch chooses kernels
    return timed


def _torch_net(case: Case) -> Any:
    """A case's network; in evaluation mode if its statistics are stored ones."""
    from torch import nn

    model = case.model(10 if case.scenario == "domain" else 30)
    if isinstance(model, EfficientNetLite0):
        from efficientnet_lite_pytorch import EfficientNet

        outputs = model.num_outputs
        return EfficientNet.from_name("efficientnet-lite0", num_classes=outputs).eval()
    if isinstance(model, models.MLP):
        sizes = [case.shape[0] * case.shape[1] * case.shape[2], *model.widths]
        layers: list[Any] = []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(a, b, bias=model.use_bias), nn.ReLU()]
        head = nn.Linear(sizes[-1], model.num_outputs, bias=model.use_bias)
        return nn.Sequential(*layers, head)
    early, late, bias = model.dropout, model.dropout_late, model.use_bias

    def conv(a: int, b: int, k: int, rate: float) -> list[Any]:
        drop = [nn.Dropout(rate)] if rate else []
        return [nn.Conv2d(a, b, k, bias=bias), nn.ReLU(), *drop, nn.MaxPool2d(2)]

    def dense(a: int, b: int) -> list[Any]:
        drop = [nn.Dropout(late)] if late else []
        return [nn.Linear(a, b, bias=bias), nn.ReLU(), *drop]

    first, second, third, wide = (
        max(1, round(n * model.width)) for n in (64, 128, 256, 2048)
    )
    return nn.Sequential(
        *conv(3, first, 4, early),
        *conv(first, second, 3, early),
        *conv(second, third, 2, late),
        nn.Flatten(),
        *dense(4 * third, wide),
        *dense(wide, wide),
        nn.Linear(wide, model.num_outputs, bias=bias),
    )
