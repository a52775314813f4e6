"""The picture of the floors in docs/architecture.md. `python -m docs.hooks.floors` draws it anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "figures" / "floors.svg"
_BOX, _GAP, _HIGH, _STEP = 112, 18, 38, 82


def floors_svg(may_import: Mapping[str, set[str]]) -> str:
    """Return the picture: a box for each package, a line to what it stands on.

    Lines that follow from others are left out: what may import `training` may import all that `training` may.

    Args:
        may_import: For each package the others that it may import.
    """
    level: dict[str, int] = {}
    for name in may_import:  # lowest first
        level[name] = 1 + max((level[other] for other in may_import[name]), default=-1)
    rows = [[name for name in may_import if level[name] == i] for i in range(1 + max(level.values()))]
    width = max(len(row) for row in rows) * (_BOX + _GAP) + _GAP
    height = len(rows) * _STEP + _GAP
    place = {}
    for i, row in enumerate(rows):
        free = width - len(row) * _BOX
        for j, name in enumerate(row):
            place[name] = (round((j + 1) * free / (len(row) + 1)) + j * _BOX, height - (i + 1) * _STEP + _HIGH // 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" width="{width}" '
        f'height="{height}">',
        "<title>The floors of the package: each stands on those that it may import</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<g stroke="#9aa5b1" stroke-width="1.5">',
    ]
    for name, others in may_import.items():
        implied = {below for other in others for below in may_import[other]}
        for other in sorted(others - implied):
            (x, y), (to_x, to_y) = place[name], place[other]
            lines.append(f'<line x1="{x + _BOX // 2}" y1="{y + _HIGH}" x2="{to_x + _BOX // 2}" y2="{to_y}"/>')
    lines += ["</g>", '<g font-family="sans-serif" font-size="15" text-anchor="middle">']
    for name, (x, y) in place.items():
        lines.append(
            f'<rect x="{x}" y="{y}" width="{_BOX}" height="{_HIGH}" rx="6" fill="#e8f0fb" stroke="#2f5d9b"/>'
            f'<text x="{x + _BOX // 2}" y="{y + _HIGH // 2 + 5}" fill="#12305c">{name}</text>'
        )
    return "\n".join([*lines, "</g>", "</svg>", ""])


def stated_floors(page: str) -> dict[str, set[str]]:
    """Return what the table of docs/architecture.md says of each package.

    Args:
        page: The text of the page.
    """
    floors: dict[str, set[str]] = {}
    for line in page.split("## Floors")[1].split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].startswith("`"):
            allowed = cells[1].split(", ")
            known = set(floors) if allowed == ["all"] else {name for name in allowed if name in floors}
            floors[cells[0].strip("`")] = known
    return floors


if __name__ == "__main__":
    text = (PICTURE.parents[1] / "architecture.md").read_text(encoding="utf-8")
    PICTURE.write_text(floors_svg(stated_floors(text)), encoding="utf-8")
