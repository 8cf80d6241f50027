"""Arrow tables of Python values, without what pyarrow does for pandas.

`pa.array` and `from_pylist` import pandas before anything else, which takes every worker a quarter
of a second and 40 MB that nothing here needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def to_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table, the same that `pa.Table.from_pylist` makes.

    Args:
        rows: a value for every column.
        schema: columns of integers, texts and bytes, or of lists and structs of them.
    """
    columns = [to_array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def to_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as an Arrow array.

    Args:
        values: None is null; lists and structs must be there.
        kind: as in `to_table`.

    Raises:
        TypeError: the type is none of those.
    """
    if pa.types.is_struct(kind):
        fields = list(kind)
        children = [to_array([value[f.name] for value in values], f.type) for f in fields]
        return pa.StructArray.from_arrays(children, fields=fields)
    if pa.types.is_list(kind):
        offsets = _offsets(values, np.int32)
        items = to_array(list(itertools.chain.from_iterable(values)), kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [None, offsets], children=[items])
    if pa.types.is_signed_integer(kind):
        present = [value or 0 for value in values]
        contents = [pa.py_buffer(np.array(present, f"int{kind.bit_width}"))]
    elif pa.types.is_fixed_size_binary(kind):
        empty = bytes(kind.byte_width)
        contents = [pa.py_buffer(b"".join(value or empty for value in values))]
    elif _is_text(kind):
        encoded = [value.encode() if value else b"" for value in values]
        contents = _joined(encoded, kind)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        contents = _joined([value or b"" for value in values], kind)
    else:
        raise TypeError(f"found a column of {kind}, expected integers, texts or bytes")
    return pa.Array.from_buffers(kind, len(values), [_validity(values), *contents])


def to_numbers(values: pa.Array, kind: type[np.number]) -> np.ndarray:
    """The numbers in an Arrow array without nulls, not copied.

    Args:
        values: of the type of `kind`.
        kind: NumPy's name of the type.
    """
    assert not values.null_count, values
    assert values.type.bit_width == 8 * np.dtype(kind).itemsize, values.type
    return np.frombuffer(values.buffers()[1], kind, len(values) + values.offset)[values.offset :]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _joined(values: Sequence[bytes], kind: pa.DataType) -> list[pa.Buffer]:
    large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    return [_offsets(values, np.int64 if large else np.int32), pa.py_buffer(b"".join(values))]


def _offsets(values: Sequence[Any], kind: type[np.signedinteger]) -> pa.Buffer:
    """Where each value starts and the last one ends."""
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=ends[1:])
    if ends[-1] > np.iinfo(kind).max:
        raise OverflowError(f"found {ends[-1]} bytes or items in a column of {kind.__name__}")
    return pa.py_buffer(ends.astype(kind))


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    """A bit for every value, 0 for null; nothing where none is null."""
    present = np.fromiter((value is not None for value in values), bool, len(values))
    return None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
