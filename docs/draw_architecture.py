"""Draws docs/architecture.svg: the folders as rooms, and what imports what as arrows.

python docs/draw_architecture.py

Where a room lies is written here; files, lines and arrows are read from the code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from docs.imports import CONTENTS, FOLDERS, READING_ORDER, ROOT, files, imported, name_of

SOURCES = {".py", ".c", ".h", ".cu"}
IDEA = "evo_subnets"
"""The room of the library's flat files."""


@dataclass(frozen=True)
class Place:
    """Where a room lies: its floor, from the top, and its left and right edge; what it holds."""

    row: int
    left: int
    right: int
    note: str


PLACES = {
    "scripts": Place(0, 40, 480, "one experiment each, top to bottom"),
    "benchmarks": Place(0, 520, 1180, "one claim each, with its command"),
    "configs": Place(1, 40, 900, "options as dataclasses; tables of the papers as presets"),
    "agents": Place(2, 40, 590, "play/: populations at play; fast/: PPO on a CPU"),
    "envs": Place(2, 630, 900, "Procgen, adapters"),
    "evo_subnets/rl": Place(3, 70, 310, "any agent's policy network"),
    "evo_subnets/workers/evotorch.py": Place(3, 340, 590, "for users of EvoTorch"),
    "evo_subnets/methods": Place(3, 630, 1090, "one paper, one file"),
    "evo_subnets/structure": Place(4, 340, 690, "what a network is made of"),
    "evo_subnets/metrics": Place(4, 730, 1090, "how good, how diverse, at what cost"),
    IDEA: Place(5, 70, 750, "the idea, in reading order"),
    "evo_subnets/data": Place(5, 790, 1090, "what is learned from"),
    "evo_subnets/workers": Place(6, 70, 270, "where work runs"),
    "evo_subnets/runs": Place(6, 300, 520, "a run's story, resumed"),
    "evo_subnets/engines": Place(6, 550, 860, "speed: all of it can go"),
    "evo_subnets/models": Place(6, 890, 1150, "published architectures"),
    "evo_subnets/files": Place(7, 300, 520, "bytes on disk"),
    "evo_subnets/streams.py": Place(7, 550, 860, "every draw, from its seed; copies"),
}
"""A room is a folder with all that is in it, except what is a room of its own."""
GROUND = dict.fromkeys(
    ("evo_subnets/draws.py", "evo_subnets/copies.py"), "evo_subnets/streams.py"
)  # fmt: skip
"""Files in another's room: engines stand on them as well."""

FRAMED = 3
"""The first floor of the library."""
GAP, TOP, WIDTH, CHIP = 58, 84, 1220, 28
INK, FADED, PAPER, LINE, WRONG = "#22252a", "#5c636e", "#ffffff", "#7b8494", "#c0392b"
FILLS = ("#efeaf6", "#efeaf6", "#e6f0ea", "#e5eef7", "#e5eef7", "#fdf3d8", "#eef0f3", "#e3e6ea")


def room_of(path: Path) -> str:
    """The room that a file lies in: the longest name that it begins with."""
    name = GROUND.get(name_of(path), name_of(path))
    return max((room for room in PLACES if f"{name}/".startswith(f"{room}/")), key=len)


def check_places() -> None:
    """A ValueError names the folder or the file that has no place yet."""
    parents = {path.parent for path in (ROOT / IDEA).glob("*/*.py")}
    homeless = sorted(name_of(folder) for folder in parents if name_of(folder) not in PLACES)
    flat = {path.stem for path in (ROOT / IDEA).glob("*.py")} - {"__init__", *READING_ORDER}
    if homeless or flat:
        raise ValueError(
            f"{', '.join([*homeless, *sorted(flat)])} has no place in the picture: "
            "a folder goes into PLACES, a flat file into READING_ORDER of docs/imports.py"
        )


def arrows() -> set[tuple[str, str]]:
    """(importing, imported) rooms. The table of contents, `evo_subnets/__init__.py`, has none."""
    pairs = {
        (room_of(path), room_of(target))
        for path in files()
        if path != CONTENTS
        for target in imported(path) - {CONTENTS}
    }
    return {(source, target) for source, target in pairs if source != target}


def up(arrow: tuple[str, str]) -> bool:
    """Whether an arrow points to a higher floor, or to the left: none should."""
    source, target = (PLACES[room] for room in arrow)
    return (source.row, source.left) >= (target.row, target.left)


def drawn(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others, and all that point up."""
    down = {pair for pair in pairs if not up(pair)}

    def reach(room: str) -> set[str]:
        direct = {target for source, target in down if source == room}
        return direct.union(*map(reach, direct))

    needed = {
        (source, target)
        for source, target in down
        if not any(target in reach(other) for s, other in down if s == source and other != target)
    }
    return sorted(needed | (pairs - down))


def figures(room: str) -> str:
    """`12 files, 1.5k lines`, of all languages; lines in hundreds, so that they hold a while."""
    sources = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCES and room_of(path) == room
    ]
    lines = sum(len(path.read_text().splitlines()) for path in sources)
    size = f"{lines / 1000:.1f}k" if lines >= 950 else str(max(100, round(lines, -2)))
    return f"{len(sources)} files, {size} lines" if len(sources) > 1 else f"{size} lines"


@cache
def chips(room: str) -> list[tuple[int, int, int, str]]:
    """(x, y, width, name) of what lies in a room, beside its upper left corner."""
    folder = ROOT / room
    names = sorted(path.stem for path in folder.glob("*.py") if room_of(path) == room)
    names = [name for name in names if not name.startswith("__")]
    if room == IDEA:
        names = [name for name in READING_ORDER if name in names]
    else:
        names += [f"{path.parent.name}/" for path in sorted(folder.glob("*/__init__.py"))]
    found, x, y = [], 14, 58
    for name in names:
        width = round(7 * len(name)) + 14
        if x + width > PLACES[room].right - PLACES[room].left - 8:
            x, y = 14, y + CHIP
        found.append((x, y, width, name))
        x += width + 6
    return found


@cache
def floors() -> list[tuple[int, int]]:
    """(top, bottom) of each floor: as high as the chips of its fullest room need."""
    found: list[tuple[int, int]] = []
    for row in range(max(place.row for place in PLACES.values()) + 1):
        rooms = [room for room, place in PLACES.items() if place.row == row]
        lowest = max((chip[1] + CHIP for room in rooms for chip in chips(room)), default=58)
        top = TOP if row == 0 else found[-1][1] + GAP + (24 if row == FRAMED else 0)
        found.append((top, top + lowest + 6))
    return found


def box(room: str) -> list[str]:
    """A room: its name, how large it is, what it holds."""
    place = PLACES[room]
    left, (top, bottom) = place.left, floors()[place.row]
    named = [room, *(n for n, home in GROUND.items() if home == room and (ROOT / n).exists())]
    title = ", ".join(name.removeprefix("evo_subnets/") for name in named)
    title = f"{IDEA}/*.py" if room == IDEA else title if title.endswith(".py") else f"{title}/"
    return [
        f'<rect x="{left}" y="{top}" width="{place.right - left}" height="{bottom - top}" rx="9" '
        f'fill="{FILLS[place.row]}" stroke="#c3c9d2"/>',
        f'<text x="{left + 14}" y="{top + 25}" class="title">{title}</text>',
        f'<text x="{place.right - 12}" y="{top + 24}" class="size">{figures(room)}</text>',
        f'<text x="{left + 14}" y="{top + 45}" class="note">{place.note}</text>',
        *(
            f'<rect x="{left + x}" y="{top + y}" width="{width}" height="22" rx="6" '
            f'fill="{PAPER}" stroke="#d5d9e0"/>'
            f'<text x="{left + x + width / 2:g}" y="{top + y + 15}" class="chip">{name}</text>'
            for x, y, width, name in chips(room)
        ),
    ]


def gap_near(row: int, x: float, taken: dict[tuple[int, int], int]) -> float:
    """The middle of the free passage between a floor's rooms that is nearest to x."""
    rooms = sorted((place.left, place.right) for place in PLACES.values() if place.row == row)
    edges = [20, *(edge for room in rooms for edge in room), WIDTH - 20]
    gaps = [(left, right) for left, right in zip(edges[::2], edges[1::2], strict=True)]

    def inside(gap: tuple[int, int]) -> float:
        left, right = gap
        margin = min(14, (right - left) // 2)
        return min(max(x, left + margin), right - margin)

    best = min((gap for gap in gaps if gap[1] - gap[0] >= 16), key=lambda gap: abs(inside(gap) - x))
    slot = taken[row, best[0]] = taken.get((row, best[0]), -1) + 1
    step = 9 if best[1] - best[0] > 60 else 7
    return inside(best) + (slot + 1) // 2 * step * (1 if slot % 2 else -1)


def ports(pairs: list[tuple[str, str]], end: int) -> dict[tuple[str, str], float]:
    """Where each arrow leaves (end 0) or enters (end 1) its room: spread, in the others' order."""

    def middle(room: str) -> float:
        return (PLACES[room].left + PLACES[room].right) / 2

    found = {}
    for room in {pair[end] for pair in pairs}:
        mine = [pair for pair in pairs if pair[end] == room]
        mine.sort(key=lambda pair: (middle(pair[1 - end]), pair))
        left, right = PLACES[room].left + 20, PLACES[room].right - 20
        share = (right - left) / len(mine)
        for index, pair in enumerate(mine):
            low, high = left + index * share, left + (index + 1) * share
            other = PLACES[pair[1 - end]]
            wanted = min(max(middle(room), other.left + 20), other.right - 20)
            found[pair] = min(max(wanted, low + share / 4), high - share / 4)
    return found


def lines(pairs: list[tuple[str, str]]) -> Iterator[str]:
    """The arrows: down through the passages of the floors between."""
    down = [pair for pair in pairs if PLACES[pair[0]].row != PLACES[pair[1]].row]
    starts, ends = ports(down, 0), ports(down, 1)
    taken: dict[tuple[int, int], int] = {}
    for pair in pairs:
        source, target = PLACES[pair[0]], PLACES[pair[1]]
        colour, mark = (WRONG, "wrong") if up(pair) else (LINE, "head")
        stroke = f'fill="none" stroke="{colour}" stroke-width="1.7" marker-end="url(#{mark})"'
        if source.row == target.row:
            y = sum(floors()[source.row]) // 2
            x, end = (source.right, target.left - 5) if not up(pair) else (
                source.left, target.right + 5
            )  # fmt: skip
            yield f'<path d="M{x},{y} L{end},{y}" {stroke}/>'
            continue
        points = [(starts[pair], floors()[source.row][1])]
        for row in range(source.row + 1, target.row):
            x = gap_near(row, ends[pair], taken)
            points += [(x, floors()[row][0] - 2), (x, floors()[row][1] + 2)]
        points.append((ends[pair], floors()[target.row][0] - 6))
        path = f"M{points[0][0]:.0f},{points[0][1]}"
        for (x0, y0), (x1, y1) in pairwise(points):
            middle = (y0 + y1) // 2
            path += f" C{x0:.0f},{middle} {x1:.0f},{middle} {x1:.0f},{y1}"
        yield f'<path d="{path}" {stroke}/>'


def svg() -> str:
    """The whole picture."""
    check_places()
    height, frame = floors()[-1][1] + 66, floors()[FRAMED][0] - 44
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6.5" '
        f'markerHeight="6.5" orient="auto"><path d="M0,0.6 L7.4,4 L0,7.4 z" fill="{colour}"/>'
        "</marker>"
        for name, colour in (("head", LINE), ("wrong", WRONG))
    )
    style = (
        f"text{{font-family:Helvetica,Arial,sans-serif;fill:{INK}}}"
        ".head{font-size:21px;font-weight:bold}.title{font-size:16px;font-weight:bold}"
        f".note{{font-size:12.5px;fill:{FADED}}}"
        f".size{{font-size:11.5px;fill:{FADED};text-anchor:end}}"
        ".chip{font-size:12px;text-anchor:middle}"
        ".frame{font-size:13px;font-weight:bold;fill:#4a6c94}"
    )
    shapes = [
        '<text x="40" y="38" class="head">evo_subnets: folders as rooms, imports as arrows</text>',
        '<text x="40" y="60" class="note">From what imports to what is imported; an arrow that '
        "follows from others is left out. Every floor stands on those below it.</text>",
        f'<rect x="40" y="{frame}" width="1140" height="{height - frame - 36}" rx="14" '
        'fill="#f8fafc" stroke="#9db4cf" stroke-dasharray="6 5"/>',
        *lines(drawn(arrows())),
        f'<text x="70" y="{height - 78}" class="frame">evo_subnets/, the library:</text>',
        f'<text x="70" y="{height - 60}" class="frame">all that the wheel holds</text>',
        *(shape for room in PLACES if (ROOT / room).exists() for shape in box(room)),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}"><defs>{heads}</defs><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(shapes)}</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(svg())
