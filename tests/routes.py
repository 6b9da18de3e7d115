"""Trees of shapes, and the short notation for routes in the tests of the routing.

A view is `rows|cols` with `/` before a split: `0|1,2`, `0|1/3`, `1|0/(8,4,4)`.
"""

import jax
import jax.numpy as jnp


def array(*shape, dtype=jnp.float32, sharding=None):
    """Returns a shape, dtype and sharding in place of an array."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def tree_of(shapes):
    """Builds nested dictionaries of shapes from paths."""
    tree = {}
    for path, shape in shapes.items():
        *parents, last = path.split("/")
        place = tree
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = array(*shape)
    return tree


def view_of(route):
    rows, cols = (",".join(map(str, axes)) for axes in (route.axes.rows, route.axes.cols))
    split = route.axes.split
    return f"{rows}|{cols}" + ("" if split is None else f"/{split.parts}".replace(" ", ""))


def shown(route):
    """Returns the view, `?` for an ambiguous parameter, or `-` for the fallback."""
    if route.axes is not None:
        return view_of(route)
    return "?" if route.rule == "ambiguous" else "-"
