"""How sums along an axis are cut up: what decides the tree of additions, and so the bits, on every target.

It looks at the shape, the axes, what is computed with, and whether products may make the sums; never at memory, threads
or the device.
"""

from __future__ import annotations

import math

from nbbce._generated_cpu import DEPTH, LANES, PIECE

# Columns that are added up side by side where rows are added, and segments that rows are cut into.
TILE, SEGMENTS = 1024, 32

# A group of at most as many elements, its rows and columns, is not added up as columns but column by column, as rows of
# which blocks hold many: in float32 (500,000, 2, 2) along its middle axis takes 7 ns an element, not 63, (40,000, 10,
# 10) 1.0, not 3.3, (2000, 20, 20) 1.0, not 1.1; in float64 (3000, 16, 16) 1.3, not 1.9, but (2000, 20, 20) 1.4, not
# 1.3.
GROUP = {"float32": 512, "float64": 320}

# Rows of fewer elements are not summed by products: of one there is none to make.  Rows of two logits take 0.85 ns an
# element with them, and 1.08 without; of ten 0.53 and 0.76 (one thread, in cache, with what a call takes).
SHORT = 2


def by_products(family: str, computed: str, plain: bool) -> bool:
    """Whether products may make the sums; `plain`: losses have no weights of their own, and labels no shares."""
    return plain and computed == "float32" and family in ("", "logits_")


def order_of(
    shape: tuple[int, ...], axes: tuple[int, ...], computed: str
) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The kept dimensions whose every index has sums of its own, those that make up columns, and the columns of a tile.

    As many at the end make up columns as have TILE elements together.  The one before, or the last if it alone has
    more, is cut into tiles, if several of its indices fit: ensembles of shape (2, 500,000, 2) took 74 ns an element
    along the first axis as columns of two.  There are no columns where the last dimension is reduced, nor of a small
    group.
    """
    columns: tuple[int, ...] = ()
    tile = 1
    for d in range(len(shape) - 1, -1, -1):
        if d in axes:
            break
        fit = min(TILE // tile, shape[d])
        if fit < shape[d] and fit < 2:
            break
        columns, tile = (d, *columns), tile * fit
        if fit < shape[d]:
            break
    if math.prod(shape[d] for d in axes) * tile <= GROUP[computed]:
        columns, tile = (), 1
    return tuple(d for d in range(len(shape)) if d not in axes and d not in columns), columns, tile


def step_of_rows(length: int) -> int:
    """Elements of a block of rows of `length`, of which each lies within a block.

    Whole rows, and pieces of 64 elements where that can be: what is left of them runs one by one, and with 1020
    elements in place of 960 a sum of rows of 10 takes 0.27 ns an element in place of 0.24.
    """
    whole = math.lcm(length, 64) if math.lcm(length, 64) <= PIECE else length
    return PIECE // whole * whole


def lanes_of(width: int) -> int:
    """Elements of the rows of columns that are added side by side: LANES at most, or one row.

    A multiple of 64 if there is one, else of 32, or 16: what a vector loop leaves over runs one by one, and 16 rows of
    250 elements took 0.60 ns an element where those of 160 take 0.49 (columns of 10, logits).
    """
    even = 64
    while even > 1 and width * even // math.gcd(width, even) > LANES:
        even //= 2
    whole = width * even // math.gcd(width, even)
    return max(1, LANES // whole) * whole


def depth_of_columns(lanes: int, by_products: bool) -> int:
    """Rows of lanes in a block."""
    return DEPTH if by_products else PIECE // lanes


def segments_of(rows: int, tile: int, step: int) -> int:
    """Segments of `rows` rows of a tile, in blocks of `step` elements."""
    return min(SEGMENTS, -(-rows * tile // step))
