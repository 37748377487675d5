"""Which classes nobody annotated in which specimen, as `data.partial` names them."""

from __future__ import annotations

from collections.abc import Sequence

from stackseg.errors import ParamsError
from stackseg.params.data import DataParams


def classes_not_annotated(data: DataParams, specimens: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return for each specimen the rising indices of the classes that nobody annotated there.

    Raises
    ------
    ParamsError
        A specimen or a class is named that does not exist, or the first class, which all that is not annotated
        counts as.
    """
    names = [one.name for one in data.classes]
    for specimen, classes in data.partial.items():
        where = f"data.partial.{specimen}"
        if specimen not in specimens:
            raise ParamsError(
                f"no specimen {specimen!r}",
                expected=f"one of {', '.join(specimens)}",
                where="data.partial",
                remedy="name a folder of data/, or take the line out",
            )
        for name in classes:
            if name not in names:
                raise ParamsError(
                    f"no class {name!r}",
                    expected=f"one of {', '.join(names[1:])}",
                    where=where,
                    remedy="name it as data.classes does",
                )
            if name == names[0]:
                raise ParamsError(
                    f"{name} is the first class of data.classes",
                    expected=f"one of {', '.join(names[1:])}",
                    where=where,
                    remedy="pixels of a class that nobody annotated are among those of the first: put another first",
                )
    wanted = {name: data.partial.get(name, []) for name in specimens}
    return {name: tuple(index for index, one in enumerate(names) if one in wanted[name]) for name in specimens}
