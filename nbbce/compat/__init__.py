"""`binary_cross_entropy` as users of other libraries call it: the same names, defaults and errors, on arrays."""

from nbbce.compat import mindspore, paddle

__all__ = ["mindspore", "paddle"]
