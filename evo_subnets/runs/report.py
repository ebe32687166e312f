"""Tables and numbers as text."""

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in aligned columns, the first to the left and the others to the right."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [headings, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


def number(value: float | None, *, digits: int = 2, error: float | None = None) -> str:
    """ "0.93", with an error "0.93 ± 0.01"; nothing where there is no value, None or NaN."""
    if value is None or value != value:
        return ""
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def interval(low: float, high: float, *, digits: int = 2, signed: bool = False) -> str:
    """ "[0.91, 0.95]"; with their signs where they are differences."""
    sign = "+" if signed else ""
    return f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
