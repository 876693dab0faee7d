"""What the two libraries demand of their arguments and `nbbce` does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbce._arguments import checked_array
from nbbce._arrays import is_dask


def dtype_of(function: str, name: str, value: Any, dtypes: tuple[str, ...]) -> np.dtype[Any]:
    """The dtype of an array, which is one of `dtypes`; anything else is a TypeError."""
    dtype: np.dtype[Any] = (value if is_dask(value) else checked_array(function, name, value)).dtype
    if dtype.name not in dtypes:
        raise TypeError(f"{function}: {name!r} must have dtype {', '.join(dtypes)}; got {dtype}")
    return dtype
