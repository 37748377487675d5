"""params.yaml as frozen, typed sections, a file per section."""

from stackseg.params.data import ClassParams, DataParams
from stackseg.params.file import Params, read_params
from stackseg.params.split import ExplicitSplit, SplitParams

__all__ = ["ClassParams", "DataParams", "ExplicitSplit", "Params", "SplitParams", "read_params"]
