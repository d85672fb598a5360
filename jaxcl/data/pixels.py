"""Mean and standard deviation per channel of images that come in batches."""

from __future__ import annotations

import numpy as np


class Counts:
    """For uint8 images: counts how often each value occurs in each channel."""

    def __init__(self, channels: int):
        self.counts = np.zeros((channels, 256), np.int64)

    def add(self, x: np.ndarray) -> None:
        """Adds a batch uint8 [b, ..., C]."""
        for c in range(len(self.counts)):
            self.counts[c] += np.bincount(x[..., c].ravel(), minlength=256)

    def fault(self, max_value: float) -> str:
        """What is wrong with a pixel, or ""."""
        top = int(max_value) + 1
        return f"is above {max_value:g}" if self.counts[:, top:].any() else ""

    def mean_std(self, max_value: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [C] of x / max_value."""
        value = np.arange(256) / max_value
        share = self.counts / self.counts.sum(1, keepdims=True)
        mean = share @ value
        varies = (self.counts > 0).sum(1) > 1  # else only rounding errors remain
        return mean, np.sqrt(np.where(varies, share @ value**2 - mean**2, 0))


class Moments:
    """For float32 images: sums of squares around the mean, in float64.

    Batches are merged as in Chan, Golub & LeVeque, 1983,
    https://doi.org/10.1080/00031305.1983.10483115, without any difference of large
    sums.
    """

    def __init__(self, channels: int):
        self.n = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)  # sum of (x − mean)²
        self.finite = True

    def add(self, x: np.ndarray) -> None:
        """Adds a batch float32 [b, ..., C]."""
        flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
        self.finite &= bool(np.isfinite(flat).all())
        n, mean = len(flat), flat.mean(0)
        apart, total = mean - self.mean, self.n + n
        self.squares += ((flat - mean) ** 2).sum(0) + apart**2 * self.n * n / total
        self.mean = self.mean + apart * n / total
        self.n = total

    def fault(self, max_value: float) -> str:
        """What is wrong with a pixel, or ""."""
        return "" if self.finite else "is NaN or infinite"

    def mean_std(self, max_value: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation [C] of x / max_value."""
        std = np.sqrt(self.squares / self.n)
        varies = std > 1e-7 * np.abs(self.mean)  # else only rounding errors remain
        return self.mean / max_value, np.where(varies, std, 0) / max_value


def tally(dtype: np.dtype, channels: int) -> Counts | Moments:
    """The tally for batches of a dtype, uint8 or float32."""
    return Counts(channels) if dtype == np.uint8 else Moments(channels)
