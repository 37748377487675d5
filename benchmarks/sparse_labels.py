"""What is lost where only a few per cent of the pixels are labelled.

    python benchmarks/sparse_labels.py [--share 0.05 0.01] [--epochs 12] [--seeds 0 1]

The sample stack is trained on with all labels, and with strokes that cover a share of each plane of training and
validation: half of them begin at a border between two classes, and all run across what they meet. All else has a value
that no class names (`data.unlabelled: ignore`). The test planes keep all their labels. A line of JSON for each training
says what the test part scores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from stackseg.catalog.build import build_catalog
from stackseg.dataset.records import Catalog
from stackseg.environment import apply_quiet_environment
from stackseg.evaluation.evaluate import count_planes
from stackseg.intake.sample import SAMPLE_CLASSES, write_sample
from stackseg.model.bundle import load_bundle
from stackseg.model.confusion import iou_per_class, mean_iou
from stackseg.model.devices import pick_device
from stackseg.params import Params
from stackseg.training.train import Machine, train

UNDRAWN = 255
STROKE_PIXELS = 24
"""Length of a stroke; it is three pixels wide."""
SETTINGS = {
    "data.classes": [{"name": name, "raw": raw, "display": display} for name, raw, display in SAMPLE_CLASSES],
    "data.unlabelled": "ignore",
    "model.encoder": "tu-test_resnet",  # quick on one core
    "train.patch_size": 64,
    "train.patches_per_epoch": 384,
    "train.batch_size": 8,
    "train.lr": 0.004,
    "train.validate_every": 4,
}


def main() -> None:
    """Train with all labels and with few; print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, nargs="+", default=[0.05], help="share of labelled pixels")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    arguments = parser.parse_args()
    apply_quiet_environment()
    for seed in arguments.seeds:
        params = Params().override({**SETTINGS, "seed": seed, "train.epochs": arguments.epochs})
        for share in (1.0, *arguments.share):
            with tempfile.TemporaryDirectory() as name:
                print(json.dumps(score(Path(name), params, share)), flush=True)


def score(folder: Path, params: Params, share: float) -> dict[str, object]:
    """Train on the sample with a share of its labels; return the scores of the test part."""
    data = folder / "data"
    write_sample(data)
    whole = build_catalog(data, params)
    if share < 1:
        draw_strokes(data / "masks.tif", whole, share, params.seed)
    catalog = build_catalog(data, params)
    started = time.perf_counter()
    train(params, catalog, data=data, model=folder / "model", checkpoints=folder / "checkpoints", machine=Machine())
    seconds = time.perf_counter() - started
    bundle = load_bundle(folder / "model", pick_device("auto"))
    counts_cc = np.sum([one.counts_cc for one in count_planes(bundle, catalog, data, params.evaluate)], axis=0)
    num_labelled = sum(catalog.class_pixels("training"))
    return {
        "seed": params.seed,
        "labelled": round(num_labelled / sum(whole.class_pixels("training")), 4),
        "mean_iou": round(mean_iou(counts_cc) or 0.0, 4),
        "iou": [None if one is None else round(one, 3) for one in iou_per_class(counts_cc)],
        "seconds": round(seconds),
    }


def draw_strokes(path: Path, catalog: Catalog, share: float, seed: int) -> None:
    """Leave in the masks of training and validation what strokes cover, a share of each plane."""
    masks_zyx = tifffile.imread(path)
    rng = np.random.default_rng(seed)
    for ref, _ in catalog.planes("training", "validation"):
        drawn_yx = strokes(masks_zyx[ref.z], share, rng)
        masks_zyx[ref.z] = np.where(drawn_yx, masks_zyx[ref.z], UNDRAWN)
    tifffile.imwrite(path, masks_zyx, photometric="minisblack", metadata={"axes": "ZYX"})


def strokes(mask_yx: npt.NDArray[np.uint8], share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which pixels (Y, X) straight strokes cover, of which each other one begins at a border."""
    borders = np.argwhere(cv2.morphologyEx(mask_yx, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0)
    drawn_yx = np.zeros(mask_yx.shape, np.uint8)
    at_border = True
    while drawn_yx.mean() < share:
        y, x = rng.choice(borders) if at_border else rng.integers(mask_yx.shape)
        angle = rng.uniform(0, np.pi)
        end = (round(x + STROKE_PIXELS * np.cos(angle)), round(y + STROKE_PIXELS * np.sin(angle)))
        cv2.line(drawn_yx, (int(x), int(y)), end, 1, thickness=3)
        at_border = not at_border
    return drawn_yx.astype(bool)


if __name__ == "__main__":
    main()
