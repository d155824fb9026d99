"""Text as LaTeX: the signs that LaTeX would eat, and those that its default fonts do not have.

Mathematical signs come as ``\\ensuremath``, so that a piece of text means the same inside ``$...$`` as outside.
"""

import unicodedata

_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\ensuremath{<}",
    ">": r"\ensuremath{>}",
    "|": r"\ensuremath{|}",
    "–": "--",
    "—": "---",
    "−": r"\ensuremath{-}",
    "×": r"\ensuremath{\times}",
    "±": r"\ensuremath{\pm}",
    "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}",
    "→": r"\ensuremath{\rightarrow}",
    "γ": r"\ensuremath{\gamma}",
    "✓": r"\ensuremath{\checkmark}",
    "✗": r"\ensuremath{\times}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "…": r"\dots{}",
    "\u00a0": "~",
    "\n": " ",
}


def escape(text: object) -> str:
    """Text as LaTeX; a sign that is neither ASCII nor known here is spelled by its Unicode name, which prints."""
    return "".join(_sign(sign) for sign in unicodedata.normalize("NFC", str(text)))


def _sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    if sign.isascii():
        return sign if sign.isprintable() else ""
    base, *marks = unicodedata.normalize("NFD", sign)
    if base.isascii() and base.isalpha() and marks:
        return sign  # an accented letter, which LaTeX reads from UTF-8
    return f"[{unicodedata.name(sign, 'unnamed sign').lower()}]"
