"""The page and the figure of `jaxcl roofline`."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

MARKS = {1: "o", 5: "s", 20: "^"}


def page(about: dict[str, Any]) -> str:
    """The page, from `roofline.json`; its first device is the machine itself."""
    lines, devices = about["lines"], about["devices"]
    here = devices[0]
    text = [
        "# What a step costs on paper",
        "",
        "Written by `jaxcl roofline`. BP's training step (forward, backward, update),",
        "all seeds side by side. XLA counts operations before compilation, bytes and",
        "kernels after it, on this machine; patches of images, which our convolutions",
        "multiply, are counted as written and read. *Least time* is the largest of",
        "operations, bytes and kernels at a device's limits. What fits into a cache",
        "goes faster than its bytes say. Where kernels bind, more seeds are free.",
        "",
        "| network | seeds | GFLOP | MB | FLOP per byte | kernels | "
        + " | ".join(f"{d['name']}: least ms, bound by" for d in devices)
        + " | measured here, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | "
        + " | ".join("---:" for _ in devices)
        + " | ---: |",
    ]
    for line in lines:
        least = " | ".join(
            f"{short(1e3 * b['seconds'])}, {b['by']}" for b in line["least"].values()
        )
        measured = line["measured_s"]
        seen = short(1e3 * measured) if measured else "–"
        text.append(
            f"| {line['network']} | {line['seeds']} | {short(line['flops'] / 1e9)} | "
            f"{short(line['bytes'] / 1e6)} | {line['flops'] / line['bytes']:.1f} | "
            f"{line['kernels']} | {least} | {seen} |"
        )
    text += ["", "## More seeds at once", ""]
    text += ["Least time of a step of n seeds over that of one:", ""]
    text += [
        "| network | seeds | " + " | ".join(d["name"] for d in devices) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in devices) + " |",
    ]
    for line in lines:
        alone = (x for x in lines if x["network"] == line["network"])
        one = next((x for x in alone if x["seeds"] == 1), line)
        if line is not one:
            ratios = [
                line["least"][d["name"]]["seconds"] / one["least"][d["name"]]["seconds"]
                for d in devices
            ]
            times = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            text.append(f"| {line['network']} | {line['seeds']} | {times} |")
    text += ["", "## Limits", ""]
    text += [
        f"- {d['name']}: {d['flops'] / 1e12:.3g} TFLOP/s, {d['bytes'] / 1e9:,.0f} "
        f"GB/s, {1e6 * d['kernel']:.2g} µs from kernel to kernel ({d['source']})."
        for d in devices
    ]
    text += [
        f"- Measured on {here['name']}, one seed after the other on each core.",
        "",
        "![Operations per second over operations per byte](roofline.png)",
        "",
    ]
    return "\n".join(text)


def short(value: float) -> str:
    """Three digits, without an exponent."""
    digits = max(0, 2 - int(np.floor(np.log10(value)))) if value > 0 else 0
    return f"{value:,.{digits}f}"


def draw(about: dict[str, Any]) -> Figure:
    """Roofs of the devices, and every network's place under them."""
    lines, devices = about["lines"], about["devices"]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    ax = figure.subplots()
    x = np.geomspace(0.5, 1000, 200)
    colours = ("#444444", "#117733", "#882255")
    networks = list(dict.fromkeys(line["network"] for line in lines))
    palette = matplotlib.colormaps["tab10"].colors  # pyright: ignore
    for device, colour in zip(devices, colours, strict=False):
        roof = np.minimum(device["flops"], device["bytes"] * x)
        ax.plot(x, roof, color=colour, lw=1.5, label=f"roof of {device['name']}")
    for line in lines:
        colour = palette[networks.index(line["network"])]
        mark, at = MARKS.get(line["seeds"], "D"), line["flops"] / line["bytes"]
        n = line["seeds"]
        name = f"{line['network']}, {n} seed{'s' * (n > 1)}"
        for device, edge in zip(devices, colours, strict=False):
            y = line["flops"] / line["least"][device["name"]]["seconds"]
            ax.plot(at, y, mark, ms=5, mfc="none", mec=edge, mew=0.8)
        if line["measured_s"]:
            y = line["flops"] / line["measured_s"]
            ax.plot(at, y, mark, ms=5, ls="", color=colour, label=f"measured: {name}")
    ax.set(xscale="log", yscale="log")
    ax.set_xlabel("operations per byte")
    ax.set_ylabel("operations per second")
    ax.set_title("open: at most, in the roof's colour; filled: measured", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=6.5)
    return figure
