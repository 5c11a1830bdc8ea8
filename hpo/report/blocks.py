"""What the page is made of: sections, and in them blocks that the template knows how to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Notice:
    """A sentence that must not be overlooked: what a number is not, or what is missing and why."""

    kind: ClassVar[str] = "notice"
    text: str


@dataclass(frozen=True)
class Facts:
    """Terms, and what there is to say of each."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows below a heading."""

    kind: ClassVar[str] = "table"
    caption: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    """The columns of words, which begin at the left; numbers end at the right."""


@dataclass(frozen=True)
class Figure:
    """A picture that plotly.js draws."""

    kind: ClassVar[str] = "figure"
    name: str
    """Unlike that of any other figure of the page."""
    caption: str
    spec: dict[str, Any]
    """Its data and its layout, as plotly.js takes them."""


Block = Paragraph | Notice | Facts | Table | Figure


@dataclass(frozen=True)
class Section:
    """A part of the page with a title."""

    name: str
    """As a link calls it."""
    title: str
    blocks: Sequence[Block]
