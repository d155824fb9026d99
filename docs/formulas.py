"""Formulas of docstrings as MathML, which browsers draw themselves: no script, and none from elsewhere.

Docstrings write formulas in reStructuredText's roles, inline and as a block that ends where its indentation does. This
replaces both before Markdown is read, and takes the other roles off the names that they mark.
"""

import re

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_BLOCK = re.compile(r"^\.\. math::[ \n]*((?:.+\n?)(?:[ \t]+.+\n?)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_OTHER = re.compile(r":(?:mod|func|class|meth):(?=`)")


class Formulas(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (Markdown's name)
        # After whitespace is normalized, which would drop the marks of what is stored; before fenced code is taken out.
        md.preprocessors.register(_Formulas(md), "formulas", 28)


class _Formulas(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        text = _OTHER.sub("", "\n".join(lines))
        text = _BLOCK.sub(lambda found: f"\n\n{self._stored(found[1], 'block')}\n\n", text)
        return _INLINE.sub(lambda found: self._stored(found[1], "inline"), text).splitlines()

    def _stored(self, formula: str, display: str) -> str:
        aligned = rf"\begin{{split}}{formula}\end{{split}}" if "&" in formula else formula
        return self.md.htmlStash.store(convert(" ".join(aligned.split()), display=display))
