"""The parts of a page: titles, words, figures and tables. What they look like is the template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hzo_hil.report.figures import Figure


@dataclass(frozen=True)
class Cell:
    text: str
    link: str = ""


@dataclass(frozen=True)
class Table:
    """`caption` says what the numbers are; `folded` tables are opened by the reader."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Text:
    """Long text as it stands, opened by the reader."""

    title: str
    content: str


@dataclass
class Section:
    title: str
    words: str = ""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.words or self.figures or self.tables or self.texts)


def cells(*texts: str) -> list[Cell]:
    return [Cell(t) for t in texts]
