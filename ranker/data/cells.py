"""Cells of tables in text, as csv writers quote them."""

from collections.abc import Iterator, Sequence
from typing import Any

from ranker.data import lines
from ranker.errors import FieldError

_LINES = 200  # of one row, at most


def rows(
    found: Iterator[tuple[int, str]], names: Sequence[str], mark: str, *, always: bool
) -> Iterator[tuple[int, Any]]:
    """Rows of a table below its header: cells by name, or what is wrong with a row.

    Args:
      found: numbered lines; a quoted cell may reach over several.
      names: of the columns.
      mark: between cells.
      always: see `split_cells`.
    """
    for number, line in found:
        cells, whole = split_cells(line, mark, always=always)
        joined = 0  # lines, where a line break stands within a cell
        # Where not every cell is quoted, a quote that opens the last one is its own.
        while not whole and (always or len(cells) < len(names)) and joined < _LINES:
            _, more = next(found, (0, None))
            if more is None or len(line) > lines.MAX_LINE:
                break
            line, joined = f"{line}\n{more}", joined + 1
            cells, whole = split_cells(line, mark, always=always)
        if len(cells) != len(names):
            wanted = f"{len(names)} cells between {'tabs' if mark == chr(9) else mark}"
            yield number, FieldError("line", line, wanted)
        else:
            yield number, dict(zip(names, cells, strict=True))


def split_cells(line: str, mark: str, *, always: bool) -> tuple[list[str], bool]:
    """Cells of a line, as a csv writer quotes them; False if a quoted one is open.

    Query logs hold quotation marks that mean themselves. A cell counts as quoted where
    it must have been: it holds the mark, a line break or doubled quotes within quotes,
    or (`always`) the writer quotes every cell.
    """
    parts = line.split(mark)
    if '"' not in line:
        return parts, True
    cells: list[str] = []
    whole = True
    at = 0
    while at < len(parts):
        cell = parts[at]
        if cell.startswith('"'):
            end = at
            while not _is_quoted(cell) and end + 1 < len(parts):
                end += 1
                cell = f"{cell}{mark}{parts[end]}"
            if not _is_quoted(cell):
                whole, cell, end = False, parts[at], at
            elif end > at or always or '""' in cell[1:-1] or "\n" in cell:
                cell = cell[1:-1].replace('""', '"')
            at = end
        cells.append(cell)
        at += 1
    return cells, whole


def _is_quoted(cell: str) -> bool:
    """Whether quotes surround a cell, and all within it are doubled."""
    return (
        len(cell) > 1
        and cell[0] == cell[-1] == '"'
        and '"' not in cell[1:-1].replace('""', "")
    )
