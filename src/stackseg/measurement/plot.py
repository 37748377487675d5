"""How the share of each class goes along z, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator, PercentFormatter

from stackseg.measurement.measure import Measures

PLOT = "fractions.png"


def draw_fractions(path: Path, measures: Measures, title: str) -> None:
    """Draw the fraction of each class against z, in the colours of the classes, as a PNG."""
    pixels_zc = measures.pixels_zc
    fractions_zc = pixels_zc / pixels_zc.sum(axis=1, keepdims=True)
    spacing = measures.spacing_z_um
    z = np.arange(len(pixels_zc)) * (spacing or 1)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    for one, fractions in zip(measures.classes, fractions_zc.T, strict=True):
        # a class may be drawn in white
        outlined = [Stroke(linewidth=2.6, foreground="#333"), Normal()]
        marker = "o" if len(z) <= 50 else None
        axis.plot(z, fractions, color=one.colour, lw=1.5, marker=marker, ms=4, label=one.name, path_effects=outlined)
    axis.set_xlabel("z (µm)" if spacing else "plane")
    axis.set_ylabel("fraction of the plane")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    if not spacing:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.set_title(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=min(4, len(measures.classes)), fontsize=9, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
