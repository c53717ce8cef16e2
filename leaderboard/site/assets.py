"""The scripts and styles that all pages share."""

from __future__ import annotations

import re
from importlib.resources import files

from prunebench.bench.errors import PrunebenchError
from prunebench.leaderboard.site.looks import stylesheet

_OWN = ("site.css", "site.js", "compare.js", "icon.svg")
_EXPORT = re.compile(r"\bexport\s*\{([^{}]*)\}\s*;?")
_DEFAULT = re.compile(r"\b([\w$]+) as default\b")


def assets() -> dict[str, bytes]:
    """The scripts and styles that all pages share: the table widget, the plots and the site's own."""
    made = {"assets/charts.css": stylesheet().encode()}
    made |= {f"assets/{name}": files(__package__).joinpath("templates", name).read_bytes() for name in _OWN}
    tables = files("itables").joinpath("html")
    made["assets/tables.css"] = tables.joinpath("dt_bundle.css").read_bytes()
    made["assets/tables.js"] = as_script(tables.joinpath("dt_bundle.js").read_text(encoding="utf-8")).encode()
    made["assets/plotly.js"] = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return made


def as_script(module: str) -> str:
    """The JavaScript module `module` as a script that stores its default export as `window.DataTable`.

    Browsers import no modules from disk. Raises PrunebenchError unless the module exports once and imports nothing.
    """
    exports = _EXPORT.findall(module)
    default = _DEFAULT.search(exports[0]) if len(exports) == 1 else None
    if default is None:
        raise PrunebenchError(
            "The table widget of the package itables has an unexpected form; install the version of itables "
            "that requirements/dev.txt names."
        )
    body = _EXPORT.sub(lambda _: f"window.DataTable={default[1]};", module)
    return f"(()=>{{{body}\n}})();\n"
