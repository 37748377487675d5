"""What `stackseg add` proposes against a plain script, on one data set, in equal minutes of CPU.

    python benchmarks/defaults.py IMAGES MASKS [--set train.epochs=40 …] [--plain]

Both train on the training part of the same catalogue. The plain script is what one would write in an hour: U-Net with
a ResNet-34 from scratch, 256-pixel crops, flips, cross-entropy + Dice, Adam at a constant rate; it trains for as many
CPU seconds as `stackseg train` took, with its start and its validations, and keeps its last weights. Both are scored
by the same confusion counts over whole planes, on the validation and the test part.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import segmentation_models_pytorch as smp
import torch
from new_project import new_project, pair, stackseg

from stackseg.dataset.channels import apply_colour
from stackseg.dataset.fingerprints import by_specimen
from stackseg.dataset.labels.table import IGNORE_INDEX
from stackseg.dataset.records import Catalog, read_catalog
from stackseg.dataset.splits import Part
from stackseg.environment import apply_quiet_environment
from stackseg.model.bundle import load_bundle
from stackseg.model.devices import pick_device
from stackseg.model.segment import segment
from stackseg.params import Params, read_params

Plane = tuple[npt.NDArray[np.generic], npt.NDArray[np.uint8]]
CROP, BATCH = 256, 8


def main() -> None:
    """Train both and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--set", nargs="*", default=[], help="params other than those proposed, key=value")
    parser.add_argument("--plain", action="store_true", help="train the plain script, too")
    arguments = parser.parse_args()
    apply_quiet_environment()
    images, masks = arguments.images.resolve(), arguments.masks.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        new_project(folder, images, masks, dict(map(pair, arguments.set)))
        stackseg("catalog", folder=folder)
        os.chdir(folder)
        params = read_params(Path("params.yaml"))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        stackseg("train", folder=folder)
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
        catalog = read_catalog(Path("outputs/catalog.json"))
        scores = {"stackseg": _score_bundle(catalog)}
        if arguments.plain:
            network = _train_plain(catalog, params, seconds)
            scores["plain"] = {part: _score(catalog, part, _plain_masks(network, catalog, part)) for part in _PARTS}
        print(
            json.dumps({"set": images.parent.name, "changed": arguments.set, "cpu_seconds": round(seconds), **scores})
        )


_PARTS: tuple[Part, ...] = ("validation", "test")


def _planes(catalog: Catalog, part: Part) -> Iterator[Plane]:
    refs = [ref for ref, _ in catalog.planes(part)]
    for specimen, chosen in by_specimen(refs, Path("data")):
        for ref in chosen:
            yield specimen.plane(ref.z), specimen.labels(ref.z, catalog.table)


def _score_bundle(catalog: Catalog) -> dict[str, float]:
    bundle = load_bundle(Path("outputs/model"), pick_device("auto"))
    scores: dict[str, float] = {}
    for part in _PARTS:
        refs = [ref for ref, _ in catalog.planes(part)]
        masks = [
            one.mask_yx
            for specimen, chosen in by_specimen(refs, Path("data"))
            for one in segment(specimen, bundle, planes=[ref.z for ref in chosen])
        ]
        scores[part] = _score(catalog, part, masks)
    return scores


def _score(catalog: Catalog, part: Part, masks: list[npt.NDArray[np.uint8]]) -> float:
    """Return the mean IoU over the classes that occur, from counts summed over the part."""
    num_classes = len(catalog.classes)
    counts = np.zeros((num_classes, num_classes), np.int64)
    for (_, truth_yx), mask_yx in zip(_planes(catalog, part), masks, strict=True):
        valid_yx = truth_yx != IGNORE_INDEX
        both = truth_yx[valid_yx].astype(np.int64) * num_classes + mask_yx[valid_yx]
        counts += np.bincount(both, minlength=num_classes**2).reshape(num_classes, num_classes)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return round(float((counts.diagonal()[union > 0] / union[union > 0]).mean()), 4)


def _train_plain(catalog: Catalog, params: Params, seconds: float) -> torch.nn.Module:
    torch.manual_seed(params.seed)
    random = np.random.default_rng(params.seed)
    planes = [(_normalised(image, params), truth) for image, truth in _planes(catalog, "training")]
    shape = {"in_channels": planes[0][0].shape[0], "classes": len(catalog.classes)}
    network: torch.nn.Module = smp.Unet("resnet34", encoder_weights=None, **shape)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE_INDEX)
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
    started = time.process_time()
    network.train()
    while time.process_time() - started < seconds:
        crops = [_crop(*planes[random.integers(len(planes))], random) for _ in range(BATCH)]
        image, truth = (torch.from_numpy(np.stack(side)) for side in zip(*crops, strict=True))
        logits = network(image)
        loss = cross_entropy(logits, truth) + dice(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    return network


def _normalised(image_yxc: npt.NDArray[np.generic], params: Params) -> npt.NDArray[np.float32]:
    image_cyx: npt.NDArray[np.float32] = (
        apply_colour(image_yxc, params.data.colour, "").astype(np.float32).transpose(2, 0, 1)
    )
    standardised: npt.NDArray[np.float32] = (image_cyx - image_cyx.mean()) / (image_cyx.std() + 1e-6)
    return standardised


def _crop(
    image_cyx: npt.NDArray[np.float32], truth_yx: npt.NDArray[np.uint8], random: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    missing = [(0, max(0, CROP - side)) for side in truth_yx.shape]
    image_cyx = np.pad(image_cyx, [(0, 0), *missing])
    truth_yx = np.pad(truth_yx, missing, constant_values=IGNORE_INDEX)
    y, x = (int(random.integers(side - CROP + 1)) for side in truth_yx.shape)
    image, truth = image_cyx[:, y : y + CROP, x : x + CROP], truth_yx[y : y + CROP, x : x + CROP]
    for axis in (0, 1):
        if random.random() < 0.5:
            image, truth = np.flip(image, axis + 1), np.flip(truth, axis)
    return np.ascontiguousarray(image), np.ascontiguousarray(truth).astype(np.int64)


@torch.inference_mode()
def _plain_masks(network: torch.nn.Module, catalog: Catalog, part: Part) -> list[npt.NDArray[np.uint8]]:
    masks = []
    params = read_params(Path("params.yaml"))
    for image_yxc, truth_yx in _planes(catalog, part):
        height, width = truth_yx.shape
        missing = ((0, 0), (0, -height % 32), (0, -width % 32))
        image = torch.from_numpy(np.pad(_normalised(image_yxc, params), missing, mode="reflect"))
        masks.append(network(image[None])[0].argmax(0).numpy()[:height, :width].astype(np.uint8))
    return masks


if __name__ == "__main__":
    main()
