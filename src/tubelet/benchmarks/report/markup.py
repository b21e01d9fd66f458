"""HTML and inline SVG that are well-formed and escaped by construction.

    el("p", "a < b", el("b", "bold"), klass="note")  ->  <p class="note">a &lt; b<b>bold</b></p>

Everything that is not `Markup` is text and is escaped, in attributes too; only `el`, `join` and constants of the
program make `Markup`. Characters that HTML and XML forbid are shown as a square.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = frozenset({"meta", "img", "wbr"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Node = Markup | str | int | None


def text(value: object) -> Markup:
    """Any value as escaped text; control characters and half surrogates become a square."""
    return Markup(escape("".join(c if _legal(c) else "□" for c in str(value)), quote=True))


def _legal(c: str) -> bool:
    return (
        (c >= " " or c in "\n\t")
        and not "\x7f" <= c <= "\x9f"
        and not "\ud800" <= c <= "\udfff"
        and c not in "\ufffe\uffff"
    )


def join(nodes: Iterable[Node]) -> Markup:
    """Nodes one after the other; None is nothing."""
    return Markup(
        "".join(node if isinstance(node, Markup) else text(node) for node in nodes if node is not None)
    )


def el(name: str, /, *children: Node, **attributes: object) -> Markup:
    """An element. `klass` is class, `_` in names is `-`; True is an attribute without a value, None and False none."""
    said = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = "class" if key == "klass" else key.rstrip("_").replace("_", "-")
        said.append(f" {label}" if value is True else f' {label}="{text(value)}"')
    said.append(">")
    if name in VOID:
        return Markup("".join(said))
    return Markup("".join(said) + join(children) + f"</{name}>")


def sentence(value: object) -> Markup:
    """A sentence from data: its direction of writing stays its own affair."""
    return el("bdi", str(value))
