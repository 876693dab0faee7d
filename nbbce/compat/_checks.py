"""What the two libraries demand of their arguments and `nbbce` does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbce._arrays import Array
from nbbce._call import _array


def checked_array(function: str, name: str, value: Any, dtypes: tuple[str, ...]) -> Array:
    """`value` as a NumPy array of one of `dtypes`; anything else is a TypeError."""
    array = _array(function, name, value)
    # That of the caller's own array: `longdouble` becomes float64 when it is viewed.
    dtype = value.dtype if isinstance(value, np.ndarray) else array.dtype
    if dtype.name not in dtypes:
        raise TypeError(f"{function}: {name!r} must have dtype {', '.join(dtypes)}; got {dtype}")
    return array
