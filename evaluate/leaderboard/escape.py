"""Names are data: make text of unknown origin safe in a terminal, in Markdown, LaTeX, HTML and CSV."""

from __future__ import annotations

import re
from html import escape as _html

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\char96{}",
    "[": "{[}",  # after a line end it would open an optional argument, and * would act as \\*
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "…": r"\ldots{}",
    "×": r"$\times$",
}
_LETTERS = {chr(code) for code in range(0xC0, 0x100)} - set("ÐÞðþ÷")  # what pdflatex prints without further packages


# An underscore between letters or digits stands for itself, and names stay readable in the source.
_MARKDOWN = re.compile(r"([\\`*\[\]#|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.)")
FORMULA = ("=", "+", "-", "@", "|", "%")


def terminal(text: object) -> str:
    """One printable line: control characters and line breaks (they could drive a terminal) become spaces."""
    line = str(text)
    return line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)


def markdown(text: object) -> str:
    """Text of one table cell: no pipe, emphasis, code, link, image or HTML tag is recognised in it."""
    safe = _html(terminal(text), quote=False)
    return _MARKDOWN.sub(r"\\\1", safe)


def latex(text: object) -> str:
    """Text with every character that LaTeX would interpret written out, and those of no Latin font as their number."""
    return "".join(
        _LATEX.get(c, c) if c.isascii() or c in _LATEX or c in _LETTERS else _code(c) for c in terminal(text)
    )


def _code(character: str) -> str:
    return f"{{[}}U+{ord(character):04X}{{]}}"


def html(text: object) -> str:
    """Text for an element or a quoted attribute of an HTML page."""
    return _html(terminal(text), quote=True)


def csv(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: one line, after an apostrophe if it begins like one."""
    if not isinstance(value, str):
        return value
    line = terminal(value)
    return f"'{line}" if line.lstrip().startswith(FORMULA) else line
