"""Texts that anybody may have written, as PostgreSQL, JSON and files take them."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return *text* without what cannot be stored: no NUL, and halves of surrogate pairs, as in odd file names, spelled out."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode("utf-8")
