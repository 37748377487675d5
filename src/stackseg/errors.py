"""The errors that a user can mend: each says what was found, expected, where, and what to do."""

from __future__ import annotations

import errno
import os
import re

_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
_ADDRESS_VARIABLES = ("MLFLOW_TRACKING_URI", "STACKSEG_STORAGE")
_MEMORY_SIGNS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "_ALLOC_FAILED",
    "failed to map segment",
    "annot allocate memory",
    "can't start new thread",
)
# up to the last @ of a word: a password may hold any other sign
_USER_INFO = re.compile(r"(?<=://)(?!/)[^\s'\"<>]*@")
_PASSWORD_FIELD = re.compile(r"(?i)\b(\w*password\w*|token)=[^\s&'\"]+")


class StacksegError(Exception):
    """An error with a remedy; the command line prints it as one line and exits with 1.

    Parameters
    ----------
    found
        What is there, in plain words ("masks.tif has 96 pages").
    expected
        What should be there ("95, as images.tif has").
    where
        File, plane, dotted key or address.
    remedy
        What to do or type next.
    """

    def __init__(self, found: str, *, expected: str = "", where: str = "", remedy: str = "") -> None:
        self.found = found
        self.expected = expected
        self.where = where
        self.remedy = remedy
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """Return the whole message on one line."""
        parts = [f"{self.where}: {self.found}" if self.where else self.found]
        if self.expected:
            parts.append(f"expected {self.expected}")
        line = "; ".join(parts)
        if self.remedy:
            line = f"{line}. {self.remedy[0].upper()}{self.remedy[1:]}"
        return without_passwords(" ".join(line.split()))


def without_passwords(text: str) -> str:
    """Return a text fit to be shown or kept: no user or password of an address, and none of the environment's secrets.

    Every message of a `StacksegError` and every traceback that the command line prints goes through it.
    """
    secrets = [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    for name in _ADDRESS_VARIABLES:
        user_info = _USER_INFO.search(os.environ.get(name, ""))
        if user_info:
            secrets.append(user_info.group().rstrip("@").partition(":")[2])
    for secret in sorted((one for one in secrets if len(one) > 3), key=len, reverse=True):
        text = text.replace(secret, "…")
    return _PASSWORD_FIELD.sub(r"\1=…", _USER_INFO.sub("", text))


class DataError(StacksegError):
    """Images, masks or their pairing are not usable as they are."""


class ParamsError(StacksegError):
    """params.yaml, or an override of it, asks for what is not possible."""


class ModelError(StacksegError):
    """A bundle, network or its weights cannot be built, read or applied."""


class StoreError(StacksegError):
    """The tracking store, the registry or DVC's cache cannot do what was asked."""


class MachineError(StacksegError):
    """The machine lacks what was asked of it: a device, a precision, memory or disk."""


def one_line(error: BaseException, longest: int = 120) -> str:
    """Return what another package said, on one line and not too long."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= longest else f"{words[: longest - 3]}..."


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device's or the machine's memory did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # torch has no class of its own for it on a CPU, nor where CUDA or a library of it could allocate nothing; Python
    # has none for a library that finds no room, nor for a thread
    return isinstance(error, RuntimeError | ImportError | OSError) and any(one in str(error) for one in _MEMORY_SIGNS)
