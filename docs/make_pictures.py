"""Make the site's pictures from a real run: its overlays and its confusion matrix, reduced to a few colours and sizes.

    python docs/make_pictures.py PROJECT --name sandstone

PROJECT is the folder of a project after `dvc repro`. Writes docs/pictures/<name>_worst.png, <name>_median.png (where
the run drew one) and <name>_confusion.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).parent / "pictures"
MAX_BYTES = 300_000


def main() -> None:
    """Reduce the pictures of a run and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="project whose outputs/ holds the run")
    parser.add_argument("--name", required=True, help="name of the data set, first part of the files' names")
    parser.add_argument("--width", type=int, default=1280, help="width of the overlays in pixels")
    options = parser.parse_args()
    outputs = options.project / "outputs"
    for label in ("worst", "median"):
        # `worst_…` and `worst1_…` in the order of the score
        for source in sorted((outputs / "overlays").glob(f"{label}*.png"))[:1]:
            reduce_picture(source, PICTURES / f"{options.name}_{label}.png", options.width)
    reduce_picture(outputs / "plots" / "confusion.png", PICTURES / f"{options.name}_confusion.png", 640)


def reduce_picture(source: Path, target: Path, width: int) -> None:
    """Write a picture anew with at most this width and with as many colours as fit into `MAX_BYTES`."""
    picture = Image.open(source).convert("RGB")
    if picture.width > width:
        height = round(picture.height * width / picture.width)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    target.parent.mkdir(exist_ok=True)
    for num_colours in (256, 128, 64, 32):
        few = picture.quantize(num_colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(target, optimize=True)
        if target.stat().st_size <= MAX_BYTES:
            break
    print(f"{target}: {few.width}×{few.height}, {target.stat().st_size // 1000} kB, from {source}")


if __name__ == "__main__":
    main()
