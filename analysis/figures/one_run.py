"""Pictures of one run: outliers at each site before and after, the error of each layer, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sq.analysis.figures.look import BLUE, DOUBLE, GREY, ORANGE, SINGLE, SKY, VERMILLION, blank, styled, tip, tips

PARTS = {"capture": SKY, "transform": ORANGE, "weights": BLUE}


@styled
def figure_run_sites(sites: Sequence[Mapping[str, Any]]) -> Figure:
    """Peak over rms of each site's tokens before and after its transform, by layer: "sites" of result.json."""
    names = list(dict.fromkeys(str(site["site"]) for site in sites))
    figure = blank(DOUBLE, 1.9)
    panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        own = [site for site in sites if site["site"] == name]
        layers = [site["layer"] for site in own]
        before = np.array([site["peak_over_rms_before"] for site in own], float)
        after = np.array([site["peak_over_rms_after"] for site in own], float)
        axes.vlines(layers, after, before, color="#BBBBBB", lw=1)
        axes.plot(layers, before, "o", color=VERMILLION, mfc="white", mew=1)
        axes.plot(layers, after, "o", color=BLUE)
        told = [
            f"{name}, layer {at}: {old:.2f} to {new:.2f}" for at, old, new in zip(layers, before, after, strict=True)
        ]
        for values in (before, after):
            tips(axes, layers, values, told)
        axes.set_title(f"{name}: {np.median(before):.1f} to {np.median(after):.1f}")
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[0].set(ylabel="peak / rms", ylim=(1, None))
    panels[-1].legend(panels[-1].lines[:2], ["before", "after"], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


@styled
def figure_run_layers(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Relative squared error of each layer's output, all quantized, on the same input: "layers" of result.json."""
    figure = blank(SINGLE, 1.8)
    axes = figure.subplots()
    bars = axes.bar([one["layer"] for one in layers], [100 * one["error"] for one in layers], color=BLUE, width=0.7)
    for bar, one in zip(bars, layers, strict=True):
        tip(bar, f"layer {one['layer']}: {one['error']:.3%}")
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.set(xlabel="layer", ylabel="relative squared error (%)")
    return figure


@styled
def figure_run_time(metrics: Mapping[str, float | None]) -> Figure:
    """Quantization seconds by part, one bar: quantize/<part>_seconds of the metrics of result.json."""
    seconds = {part: float(metrics[f"quantize/{part}_seconds"] or 0.0) for part in PARTS}
    total = sum(seconds.values())
    figure = blank(SINGLE, 1.0)
    axes = figure.subplots()
    start = 0.0
    for number, (part, value) in enumerate(seconds.items()):
        bar = axes.barh(0, value, left=start, height=0.5, color=PARTS[part], edgecolor="white")
        tip(bar[0], f"{part}: {value:.2f} s of {total:.2f} s")
        # Narrow parts stand side by side: every other name goes below the bar.
        y, side = (-0.3, "top") if number % 2 else (0.3, "bottom")
        axes.text(start + value / 2, y, f"{part} {value:.2f} s", ha="center", va=side, fontsize=7)
        start += value
    axes.set(xlim=(0, total or 1), ylim=(-0.75, 0.75), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(f"quantization time (s), {total:.2f} s in all", color=GREY)
    return figure
