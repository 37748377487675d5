"""Pretrained encoder weights: from the local Hugging Face cache, else from the hub, else an error within seconds."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import segmentation_models_pytorch as smp
import timm
from huggingface_hub import constants

from stackseg.errors import ModelError

# The hub's own client tries for 20 to 50 seconds before it gives up.
ANSWER_WITHIN_S = 5.0


@dataclass(frozen=True)
class WeightsSource:
    """Where weights are on the hub; revision None is the repository's newest."""

    repo_id: str
    revision: str | None
    filenames: tuple[str, ...]


def encoder_weights_arguments(encoder: str, weights: str) -> dict[str, Any]:
    """Return the arguments that make smp.create_model load these weights, after fetching them.

    Raises
    ------
    ModelError
        No weights of that name, or they are neither in the cache nor to be had from the hub.
    """
    source = find_source(encoder, weights)
    paths = [fetch(source, filename) for filename in source.filenames]
    if not encoder.startswith("tu-"):
        return {"encoder_weights": weights}  # smp looks them up again, by commit, so in the cache
    # timm is given the file, for it would ask the hub about it again; the file is a plain state dict
    return {"encoder_weights": True, "pretrained_cfg_overlay": {"file": str(paths[-1]), "custom_load": False}}


def find_source(encoder: str, weights: str) -> WeightsSource:
    """Return where the weights of a known encoder are; timm's are chosen by ``imagenet`` and the tag in its name.

    Raises
    ------
    ModelError
        No weights of that name, or none in a safe format; names those that there are.
    """
    if not encoder.startswith("tu-"):
        settings = smp.encoders.encoders[encoder]["pretrained_settings"]
        if weights not in settings:
            raise _no_such_weights(encoder, weights, sorted(settings))
        one = settings[weights]
        return WeightsSource(one["repo_id"], one["revision"], ("config.json", "model.safetensors"))
    name = encoder.removeprefix("tu-")
    tagged = [f"tu-{one}" for one in timm.list_pretrained(f"{name.split('.')[0]}.*")]
    if weights != "imagenet":
        raise _no_such_weights(encoder, weights, ["imagenet"] if tagged else [], tagged)
    config = timm.get_pretrained_cfg(name) if "." not in name or encoder in tagged else None
    if config is None or not config.hf_hub_id:
        raise _no_such_weights(encoder, weights, [], [one for one in tagged if one != encoder])
    return WeightsSource(config.hf_hub_id, None, ("model.safetensors",))


def fetch(source: WeightsSource, filename: str) -> Path:
    """Return the path of the file in the local cache, downloading it first where it is not there.

    Raises
    ------
    ModelError
        It is not there, and the hub does not answer within seconds, or not with the file.
    """
    cached = hub.try_to_load_from_cache(source.repo_id, filename, revision=source.revision)
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise _not_to_be_had(source, "HF_HUB_OFFLINE forbids to ask the hub")
    complaint = _probe(hub.hf_hub_url(source.repo_id, filename, revision=source.revision))
    if complaint:
        raise _not_to_be_had(source, complaint)
    try:
        return Path(hub.hf_hub_download(source.repo_id, filename, revision=source.revision))
    except Exception as error:  # network, disk and the hub's own: each means that the file is not here
        raise _not_to_be_had(source, f"the download failed: {error}") from error


def _probe(url: str) -> str:
    """Return what is wrong with asking the hub for the file, or "" if it is there."""
    answers: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        try:
            hub.get_hf_file_metadata(url, timeout=ANSWER_WITHIN_S)
        except Exception as error:  # whatever the client runs into is the answer
            answers.put(f"{constants.ENDPOINT} does not give them: {error}")
        else:
            answers.put("")

    # In a thread, for looking up a host name knows no time limit.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=ANSWER_WITHIN_S + 1)
    except queue.Empty:
        return f"{constants.ENDPOINT} does not answer within {ANSWER_WITHIN_S:g} s"


def _not_to_be_had(source: WeightsSource, complaint: str) -> ModelError:
    return ModelError(
        f"the pretrained weights {source.repo_id} are not in {constants.HF_HUB_CACHE}, and {complaint}",
        where="model.encoder_weights",
        remedy="set encoder_weights to null to start from scratch, or fetch them on a connected machine and copy its "
        "Hugging Face folder here (HF_HOME names it), or name a mirror by HF_ENDPOINT",
    )


def _no_such_weights(encoder: str, weights: str, names: list[str], encoders: list[str] | None = None) -> ModelError:
    expected = f"null{''.join(f', {name}' for name in names)}"
    return ModelError(
        f"no pretrained weights '{weights}' for encoder '{encoder}'",
        expected=expected,
        where="model.encoder_weights",
        remedy=f"timm's weights are chosen by the encoder: {', '.join(encoders)}" if encoders else "",
    )
