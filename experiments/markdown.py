"""Tables in Markdown, of what the logs say."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a line for each row; it ends with a newline.

    Examples:
      >>> print(table(["links", "s"], [["loopback", 0.5]]))
      | links | s |
      |---|---|
      | loopback | 0.5 |
      <BLANKLINE>
    """
    line = lambda cells: "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
    lines = [line([str(cell) for cell in cells]) for cells in (head, *rows)]
    lines.insert(1, f"|{'---|' * len(head)}")
    return "\n".join(lines) + "\n"
