"""One fixed colour and mark for each method, on every board and in every theme; variants keep their method's colour."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

# Told apart with normal vision and without red or green cones, and at least 3 : 1 against the card of their theme.
# The first two are the text's ink, for magnitude pruning, and the grey of controls.
LIGHT = ("#1c2126", "#717c87", "#1567de", "#f04e00", "#0ea459", "#831f5e", "#1b8ed0", "#87530f")
DARK = ("#e3e7ea", "#8b97a3", "#3a93f0", "#dc6c36", "#8ccb5d", "#f8acbf", "#a3c4ff", "#d9dd6a")

_METHODS = {
    "magnitude": (0, 0),
    "dense": (0, 3),
    "random": (1, 1),
    "imp": (2, 0),
    "hydra": (3, 1),
    "awt": (4, 2),
    "iwi": (5, 3),
    "iwi-dense": (5, 1),
    "flying-bird": (6, 0),
    "harp": (7, 1),
    "s2ap": (3, 2),
    "snip": (7, 0),
    "grasp": (6, 1),
    "synflow": (5, 2),
    "r-admm": (6, 2),
    "twin-rep": (7, 3),
    "rst": (1, 3),
}  # a colour and a shape; append new methods, and never change one that boards have shown
SHAPES = ("m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "m-3.5-3.5h7v7h-7z", "m0-5l4.6 8h-9.2z", "m0-5l4.5 5-4.5 5-4.5-5z")


@dataclass(frozen=True)
class Look:
    """The colour, by number, the shape of a mark, and whether lines are dashed and marks hollow, as for variants."""

    colour: int
    shape: str
    dashed: bool


def look_of(label: str) -> Look:
    """The look of the row `label`, `NAME` or `NAME:option=value`; names that nobody planned get one from their hash."""
    name, _, options = label.partition(":")
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).digest()
    colour, shape = _METHODS.get(name, (2 + digest[0] % (len(LIGHT) - 2), digest[1] % len(SHAPES)))
    return Look(colour, SHAPES[shape], bool(options))


def stylesheet() -> str:
    """The colours of both themes as CSS variables, and the classes that figures use: strokes sN and fills fN."""
    both = [" ".join(f"--k{i}: {value};" for i, value in enumerate(theme)) for theme in (LIGHT, DARK)]
    uses = "\n".join(f".s{i} {{ stroke: var(--k{i}); }} .f{i} {{ fill: var(--k{i}); }}" for i in range(len(LIGHT)))
    return (
        f":root {{ {both[0]} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {both[1]} }} }}\n{uses}\n"
        "svg.chart { display: block; width: 100%; height: auto; fill: var(--text); "
        "font: 13px system-ui, sans-serif; }\n"
        ".chart .muted { fill: var(--muted); } .chart .line { fill: none; stroke-width: 1.8; }\n"
        ".chart .frame { fill: none; stroke: var(--line); } .chart .grid { fill: none; stroke: var(--grid); } "
        ".chart .zero { stroke: var(--muted); stroke-width: 1; }\n"
        ".chart .dash { stroke-dasharray: 5 4; } .chart .dots { stroke-dasharray: 1.5 4; stroke-linecap: round; }\n"
        ".chart .ribbon { opacity: 0.16; } .chart .mark { stroke-width: 1.6; } .chart .hollow { fill: var(--card); }\n"
        ".seeds { fill: none; stroke-width: 4; stroke-linecap: round; opacity: 0.3; }\n"
        ".chart .strong { font-weight: 620; } .chart .faint { opacity: 0.3; }\n"
    )


def standalone(svg: str) -> str:
    """An inline chart as a file of its own size, with its colours inside and a ground for both themes."""
    themes = (
        ":root { --text: #1c2126; --muted: #55606b; --line: #d9dee3; --grid: #e9ecef; --card: #ffffff; }\n"
        "@media (prefers-color-scheme: dark) { :root { --text: #e3e7ea; --muted: #a2adb7; --line: #353d45; "
        "--grid: #2a3138; --card: #1a1e22; } }\nsvg.chart { background: var(--card); }\n"
    )
    head, rest = svg.split(">", 1)
    width, height = head.partition('viewBox="0 0 ')[2].split('"')[0].split()
    style = f"{themes}{stylesheet()}".replace("width: 100%; height: auto; ", "")
    size = f'width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg"'
    return f"{head} {size}><style>\n{style}</style>{rest}\n"
