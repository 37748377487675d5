"""Download published files: resumed where they broke off, checked against their checksums."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pooch
import requests

from stackseg.errors import DataError, MachineError

ATTEMPTS = 4
TIMEOUT_S = 30
_CHUNK = 2**20
_AGAIN = "type the same command again: it goes on where it broke off"

Progress = Callable[[int, int], None]


def download(
    urls: Mapping[str, str], known: Mapping[str, str], folder: Path, progress: Progress = lambda done, total: None
) -> dict[str, str]:
    """Download files into a folder, those apart that are there with the right checksum.

    Parameters
    ----------
    urls
        Address of each file, by its name relative to `folder`.
    known
        SHA-256 of files, as far as they are known.
    folder
        Where they are kept, and where half of a file waits for the other half (`.part`).
    progress
        Called with files done and files in all.

    Returns
    -------
    dict
        SHA-256 of every file.

    Raises
    ------
    DataError
        A file is not at its address, or is another than the one that is known.
    MachineError
        The connection breaks off again and again.
    """
    logger = pooch.get_logger()
    logger.setLevel("ERROR")  # it would tell checksums that are recorded anyway
    found: dict[str, str] = {}
    for done, (name, url) in enumerate(urls.items()):
        progress(done, len(urls))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        expected = known.get(name)
        try:
            pooch.retrieve(url, _hash(expected), fname=path.name, path=path.parent, downloader=_resume)
        except ValueError as error:  # pooch's word for another checksum
            raise DataError(
                f"a file with another checksum than recorded ({expected})" if expected else str(error),
                where=url,
                remedy="what is published has changed: look at it, then remove its entry from sources.yaml",
            ) from None
        found[name] = pooch.file_hash(str(path), alg="sha256")
        progress(done + 1, len(urls))
    return found


def _hash(sha256: str | None) -> str | None:
    return None if sha256 is None else f"sha256:{sha256}"


def _resume(url: str, output_file: Any, _: Any) -> None:
    """Download a file beside its place, going on with what an earlier try left; a downloader for pooch."""
    target = Path(output_file)
    part = target.parent / f".{url.rsplit('/', 1)[-1]}.part"
    problem = ""
    for _attempt in range(ATTEMPTS):
        try:
            if _fetch_rest(url, part):
                shutil.move(part, target)
                return
            problem = "it breaks off"
        except requests.RequestException as error:
            problem = type(error).__name__
    raise MachineError(f"the download fails ({problem}, {ATTEMPTS} tries)", where=url, remedy=_AGAIN)


def _fetch_rest(url: str, part: Path) -> bool:
    """Append what is missing, and return whether the file is as long as the server says."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()  # longer than the file that is published: begin anew
            return False
        if answer.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise DataError(
                f"the server answers {answer.status_code} ({answer.reason})",
                expected="the file",
                where=url,
                remedy="see whether it has moved; files that you have already are taken by --from DIR",
            )
        resumed = answer.status_code == requests.codes.partial_content
        length = answer.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        answer.raw.enforce_content_length = False  # what came before a break is kept, and the length compared below
        with part.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
    return total is None or part.stat().st_size == total
