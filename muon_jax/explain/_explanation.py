"""The result of `explain`: numbers for every parameter, and their table."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from muon_jax.explain._tables import Row, Table
from muon_jax.routing._rule import FALLBACK, MUON
from muon_jax.routing._traced import TracedLeaf
from muon_jax.views._matrix_axes import MatricesShape, MatrixAxes, Shape

_COLUMNS = (
    "parameter",
    ">leaves",
    "shape",
    "goes to",
    "matrices",
    "rule",
    "inputs -> outputs",
    "by the loss",
    ">scale",
    ">FLOPs",
    ">share",
    ">state",
    ">decay",
    ">learning rate",
    "sharding",
)


@dataclasses.dataclass(frozen=True)
class ExplainedLeaf:
    """What an optimizer does with one parameter.

    Attributes:
      path: its names joined by `/`.
      shape: its shape.
      dtype: the name of its dtype.
      label: `"muon"`, `"adamw"` for the fallback, a label of your rules, or `"other"` for an
        optimizer of another library.
      rule: the rule that matched.
      why: the reason for that rule.
      axes: its view as matrices; None unless the label is `"muon"`.
      matrices: (count, rows, cols) of its matrices, rows being inputs; one entry for each shape.
      scale: the factor on the orthogonal update, for each entry of `matrices`; None for
        `"update_norm"`.
      weight_decay: a number, `"schedule"` or `"injected"`; None if another optimizer decides.
      learning_rate_multiplier: factor on its update: 10 for an embedding or an output head under
        the default scale, else 1, times the factors of `scale_by_path`.
      flops: FLOPs of orthogonalising it once; None if the orthogonalizer has no `flops`.
      state_bytes: size of its part of the optimizer's state.
      sharding: its partition over a mesh, if any.
      traced: its route as `trace_axes` reads it from the loss; None without a loss.
      differs: whether that route has another label or other matrices.
    """

    path: str
    shape: Shape
    dtype: str
    label: str
    rule: str
    why: str
    axes: MatrixAxes | None
    matrices: tuple[MatricesShape, ...]
    scale: tuple[float | None, ...]
    weight_decay: float | str | None
    learning_rate_multiplier: float
    flops: int | None
    state_bytes: int
    sharding: str | None
    traced: TracedLeaf | None = None
    differs: bool = False

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What an optimizer does with a model: print it, show it in a notebook, or read its numbers.

    Attributes:
      leaves: one entry for each parameter, in the order of the tree.
      adamw_state_bytes: the size of the state of AdamW for these parameters.
      notices: the warnings of `muon` at `init`: no matrix for Muon, or no output head.
      products: pairs of a platform and the number formats of the operands of products there; empty
        if the orthogonalizer does not have them. The table shows them if any differs from float32.
    """

    leaves: tuple[ExplainedLeaf, ...]
    adamw_state_bytes: int
    notices: tuple[str, ...] = ()
    products: tuple[tuple[str, str], ...] = ()

    @property
    def flops(self) -> int | None:
        """FLOPs of orthogonalising the whole model once; None if unknown."""
        flops = [leaf.flops for leaf in self.leaves]
        return None if None in flops else sum(filter(None, flops))

    @property
    def state_bytes(self) -> int:
        """Size of the state of all parameters, on all devices together, without step counts."""
        return sum(leaf.state_bytes for leaf in self.leaves)

    @property
    def differences(self) -> tuple[ExplainedLeaf, ...]:
        """The parameters whose route differs from that of the loss; empty without a loss."""
        return tuple(leaf for leaf in self.leaves if leaf.differs)

    @property
    def parameters(self) -> dict[str, int]:
        """The number of entries for each label."""
        sizes: dict[str, int] = {}
        for leaf in self.leaves:
            sizes[leaf.label] = sizes.get(leaf.label, 0) + leaf.size
        return sizes

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as numbers, strings, lists and dictionaries, ready for JSON."""
        return {
            "leaves": [_fields(leaf) for leaf in self.leaves],
            "parameters": self.parameters,
            "flops": self.flops,
            "state_bytes": self.state_bytes,
            "adamw_state_bytes": self.adamw_state_bytes,
            "notices": list(self.notices),
            "products": dict(self.products),
        }

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> Table:
        """Returns the table; parameters whose paths differ only in numbers share a row if alike."""
        groups: dict[ExplainedLeaf, list[ExplainedLeaf]] = {}
        for leaf in self.leaves:
            traced = leaf.traced and dataclasses.replace(leaf.traced, path="")
            path = re.sub(r"\d+", "*", leaf.path)
            alike = dataclasses.replace(leaf, path=path, traced=traced)
            groups.setdefault(alike, []).append(leaf)
        rows = [_row(group, self.flops) for group in groups.values()]
        used = [column for column in range(len(_COLUMNS)) if any(row[column] for row in rows)]
        whys = {f"{leaf.rule}: {leaf.why}": None for leaf in self.leaves}
        return Table(
            tuple(_COLUMNS[column] for column in used),
            [tuple(row[column] for column in used) for row in rows],
            [*self._totals(), "", *whys, *self._traced(), *self.notices],
        )

    def _traced(self) -> list[str]:
        """Returns the reasons of traced routes that differ or are undecided."""
        reasons = [
            f"!= {traced.rule}, to {FALLBACK if traced.axes is None else MUON}: {traced.why}"
            if leaf.differs
            else f"not read: {traced.why}"
            for leaf in self.leaves
            if (traced := leaf.traced) and (leaf.differs or not traced.read)
        ]
        return list(dict.fromkeys(reasons))

    def _totals(self) -> list[str]:
        every = max(1, sum(self.parameters.values()))
        parts = [f"{size / every:.1%} to {label}" for label, size in self.parameters.items()]
        matrices = [shape for leaf in self.leaves for shape in leaf.matrices]
        count = sum(batch for batch, _, _ in matrices)
        shapes = len({frozenset(sides) for _, *sides in matrices})
        noun = "matrix" if count == 1 else "matrices"
        cost = f": {_decimal(self.flops, 'FLOP')} to orthogonalise" if self.flops else ""
        size = _decimal(sum(self.parameters.values()))
        formats = ", ".join(f"{numbers} on {platform}" for platform, numbers in self.products)
        rounds = any(numbers != "float32" for _, numbers in self.products)
        return [
            f"{size} parameters: {', '.join(parts) or 'none'}",
            f"{count} {noun} of {shapes} shape{'s' * (shapes != 1)}{cost}",
            f"{_binary(self.state_bytes)} of state; AdamW alone {_binary(self.adamw_state_bytes)}",
            *([f"operands of products: {formats}"] if rounds else []),
            *self._agreement(),
        ]

    def _agreement(self) -> list[str]:
        """Returns how many routes the loss decides, and how many of them differ."""
        traced = [leaf.traced for leaf in self.leaves if leaf.traced]
        if not traced:
            return []
        read, differ = sum(leaf.read for leaf in traced), len(self.differences)
        marked = f"{differ} of them marked != as different" if differ else "none of them differs"
        return [f"read from the loss: {read} of {len(traced)} parameters; {marked}"]


def _row(group: Sequence[ExplainedLeaf], total_flops: int | None) -> Row:
    leaf = group[0]
    matrices = [f"{len(group) * count} of {rows}x{cols}" for count, rows, cols in leaf.matrices]
    scale = ["measured" if factor is None else f"{factor:.3g}" for factor in leaf.scale]
    flops = sum(each.flops or 0 for each in group)
    return (
        _common_path([each.path for each in group]),
        str(len(group)) if len(group) > 1 else "",
        "x".join(map(str, leaf.shape)) or "scalar",
        leaf.label,
        ", ".join(matrices),
        leaf.rule,
        "" if leaf.axes is None else _view(leaf.axes),
        _by_the_loss(leaf),
        ", ".join(dict.fromkeys(scale)),
        _decimal(flops) if flops else "",
        f"{flops / total_flops:.1%}" if flops and total_flops else "",
        _binary(sum(each.state_bytes for each in group)),
        "" if leaf.weight_decay is None else f"{leaf.weight_decay}",
        "" if leaf.learning_rate_multiplier == 1 else f"x {leaf.learning_rate_multiplier:g}",
        leaf.sharding or "",
    )


def _by_the_loss(leaf: ExplainedLeaf) -> str:
    """Writes the traced route; if it differs, with a mark and its view."""
    traced = leaf.traced
    if traced is None or not traced.read:
        return "" if traced is None else "not read"
    if not leaf.differs:
        return traced.rule
    return f"!= {traced.rule}" + ("" if traced.axes is None else f" {_view(traced.axes)}")


def _common_path(paths: Sequence[str]) -> str:
    """Writes `*` for every number in which the paths differ."""
    split = [re.split(r"(\d+)", path) for path in paths]
    return "".join(
        pieces[0] if len(set(pieces)) == 1 else "*" for pieces in zip(*split, strict=True)
    )


def _view(axes: MatrixAxes) -> str:
    rows, cols = (",".join(map(str, group)) for group in (axes.rows, axes.cols))
    if axes.split is None:
        return f"{rows} -> {cols}"
    split = axes.split
    plain = split.of == "cols" and not split.interleaved
    return f"{rows} -> {cols}, split {split.parts if plain else split}"


def _plain(value: Any) -> Any:
    if isinstance(value, MatrixAxes):
        return repr(value)
    if isinstance(value, TracedLeaf):
        return _fields(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _fields(leaf: ExplainedLeaf | TracedLeaf) -> dict[str, Any]:
    return {field.name: _plain(getattr(leaf, field.name)) for field in dataclasses.fields(leaf)}


def _decimal(value: int, unit: str = "") -> str:
    return _scaled(value, 1000, [prefix + unit for prefix in ("", "k", "M", "G", "T", "P", "E")])


def _binary(value: int) -> str:
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    """Writes three digits and a unit."""
    power = 0
    while value >= base and power + 1 < len(units):
        value, power = value / base, power + 1
    digits = f"{value:.3g}" if power and value < 100 else f"{value:.0f}"
    return f"{digits} {units[power]}".strip()
