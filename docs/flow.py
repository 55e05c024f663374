"""Draws docs/flow.svg, the picture of the README: `python docs/flow.py > docs/flow.svg`."""

from __future__ import annotations

import sys

BOX = {
    "prompts": (60, 150, 150, 54, "prompts stream", "Redis", "#fdf3e1", "#c98a1b"),
    "rollouts": (60, 330, 150, 54, "rollouts stream", "Redis", "#fdf3e1", "#c98a1b"),
    "worker": (270, 240, 150, 54, "rollout workers", "× N · no GPU", "#eef2f7", "#5b6b80"),
    "policy": (500, 330, 160, 54, "policy", "× P · Generate", "#e5f1ec", "#2c7a5b"),
    "reward": (500, 130, 160, 54, "reward", "× R · Score", "#e5f1ec", "#2c7a5b"),
    "reference": (500, 230, 160, 54, "reference", "× F · LogProbs", "#e5f1ec", "#2c7a5b"),
    "trainer": (270, 430, 150, 54, "trainer", "PPO · checkpoints", "#e9ecfb", "#4453b8"),
    "weights": (740, 325, 140, 64, "weight store", "versions, SHA-256", "#f6eaf3", "#9a3d7f"),
    "apps": (740, 130, 140, 54, "applications", "score online", "#ffffff", "#8a94a3"),
}
# Path, label, position of the label.
ARROWS = [
    ("M 210 177 C 260 177 250 250 270 258", "claim", (222, 168)),
    ("M 270 280 C 235 300 225 320 212 340", "finish once", (132, 318)),
    ("M 420 255 C 460 240 460 165 498 158", "", (0, 0)),
    ("M 420 265 L 498 257", "gRPC", (440, 252)),
    ("M 420 275 C 460 290 460 345 498 354", "", (0, 0)),
    ("M 135 384 C 135 440 200 452 268 455", "read", (176, 428)),
    ("M 270 470 C 40 520 10 380 20 250 C 24 195 40 180 58 178", "dispatch", (116, 497)),
    ("M 420 460 C 640 470 780 460 808 392", "publish v+1", (600, 484)),
    ("M 740 357 L 663 357", "pull, swap", (670, 349)),
    ("M 740 157 L 663 157", "gRPC", (688, 148)),
]


def box(x: int, y: int, width: int, height: int, title: str, note: str, fill: str, line: str) -> str:
    """One part."""
    middle = x + width / 2
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" fill="{fill}" stroke="{line}"'
        f' stroke-width="1.6"/><text x="{middle}" y="{y + height / 2 - 3}" class="t">{title}</text>'
        f'<text x="{middle}" y="{y + height / 2 + 15}" class="n">{note}</text>'
    )


def main() -> None:
    """Writes the picture to standard output."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 100 900 420" role="img"'
        ' aria-label="The flow of a rollout through the services of Fairlead">',
        "<style>text{font-family:system-ui,sans-serif;text-anchor:middle;fill:#1f2733}"
        ".t{font-size:15px;font-weight:600}.n{font-size:12.5px;fill:#4c5868}"
        ".l{font-size:12.5px;fill:#4c5868;text-anchor:start;font-style:italic}</style>",
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
        ' orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="#66727f"/></marker></defs>',
        '<rect x="0" y="100" width="900" height="420" fill="#ffffff"/>',
    ]
    for path, label, (x, y) in ARROWS:
        parts.append(
            f'<path d="{path}" fill="none" stroke="#66727f" stroke-width="1.5" marker-end="url(#a)"/>'
        )
        if label:
            parts.append(f'<text x="{x}" y="{y}" class="l">{label}</text>')
    parts += [box(*values) for values in BOX.values()]
    sys.stdout.write("\n".join([*parts, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
