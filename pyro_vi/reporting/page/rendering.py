"""The page as text: `rendered` fills the templates beside this module, with everything escaped that it shows."""

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from pyro_vi.reporting.page.glossary import TERMS
from pyro_vi.reporting.page.parts import Page, Section, Verdict

MARKS: Mapping[Verdict, str] = {"pass": "✓", "care": "!", "fail": "✕", "none": "?"}
WORDS: Mapping[Verdict, str] = {"pass": "nothing wrong", "care": "with care", "fail": "fails", "none": "cannot be told"}
OVERALL: Mapping[Verdict, str] = {
    "pass": "can be used",
    "care": "with care",
    "fail": "not as it is",
    "none": "cannot be told",
}


def rendered(page: Page) -> str:
    """Return the page as HTML that needs no other file.

    Example:
        >>> from pyro_vi.reporting.page.judging import judged
        >>> text = rendered(Page("vae <b>", "digits", judged([])))
        >>> "vae &lt;b&gt;" in text, "vae <b>" in text
        (True, False)
    """
    template = _environment().get_template("report.html.jinja")
    values: dict[str, Any] = {"page": page, "terms": TERMS, "marks": MARKS, "words": WORDS, "overall": OVERALL}
    return template.render(**values, style=_text("style.css"), script=_text("script.js"), used=_used(page.sections))


def _used(sections: tuple[Section, ...]) -> list[str]:
    """Names of the glossary's entries that the page refers to, in the order of the glossary."""
    found = {"verdict", "error"}
    for section in sections:
        for table in section.tables:
            found.update(column.term for column in table.columns)
            found.update(table.terms)
    return [name for name in TERMS if name in found]


def _text(name: str) -> str:
    return files("pyro_vi.reporting.page").joinpath("templates", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import DictLoader, Environment, StrictUndefined

    loader = DictLoader({"report.html.jinja": _text("report.html.jinja")})
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
