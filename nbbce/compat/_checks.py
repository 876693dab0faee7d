"""What the two libraries demand of their arguments and `nbbce` does not."""

from __future__ import annotations

from typing import Any

from nbbce._arrays import Array, is_dask
from nbbce._call import _array


def checked_array(function: str, name: str, value: Any, dtypes: tuple[str, ...]) -> Array:
    """`value` as an array of one of `dtypes`; anything else is a TypeError."""
    array: Array = value if is_dask(value) else _array(function, name, value)
    if array.dtype.name not in dtypes:
        raise TypeError(f"{function}: {name!r} must have dtype {', '.join(dtypes)}; got {array.dtype}")
    return array
