"""The page: one HTML file that needs nothing else, from sections.

No script, no request: its security policy forbids both. All text is escaped but for the style sheet and the figures'
SVG, which matplotlib escapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import hzo_hil
from hzo_hil.report.figures import Saved
from hzo_hil.report.model import Material
from hzo_hil.report.sections import Section

GENERATOR = "hzo-hil report"


@dataclass(frozen=True)
class Part:
    """One study, comparison or run on the page. `figures` are the saved ones of each section, by title."""

    material: Material
    findings: Sequence[str]
    sections: Sequence[Section]
    figures: dict[str, Sequence[Saved]]
    csv: str

    @property
    def counts(self) -> list[tuple[str, str]]:
        m = self.material
        status = Counter(r.status for r in m.runs)
        found = [("runs done", str(status["done"]))]
        found += [(name, str(status[name])) for name in ("failed", "missing") if status[name]]
        if m.kind != "run":
            found += [("methods", str(len(m.methods))), ("seeds", str(len(m.seeds)))]
        found += [(f"levels of {a.label}", str(len(a.levels))) for a in m.of_role("noise") if a.levels]
        return found


def render(title: str, parts: Sequence[Part]) -> str:
    """The page as text. Raises ImportError where jinja2 is not installed."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    templates = resources.files("hzo_hil.report") / "templates"

    def load(name: str) -> str:
        return (templates / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["drawn"] = Markup
    return environment.get_template("page.html").render(
        title=title, parts=parts, style=Markup(load("page.css")), generator=GENERATOR, version=hzo_hil.__version__
    )
