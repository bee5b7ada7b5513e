"""The page that says whether a fitted posterior can be used: one HTML file that needs nothing else.

* `parts`: what a page consists of, as plain values: sections with sentences, tables and pictures.
* `glossary`: what each number means, in a sentence or two.
* `drawing`: pictures as data URIs, and the figures of the page's own. `subject`: the fit and its rows. `tabulating`: tables
  from datasets.
* `of_diagnostics`: a section for each diagnostic, with `of_weights`; `of_run`: those of the fit, its records and its pictures,
  with `recalled`, which says how it was called; `of_comparison`: that of a comparison.
* `judging`: the rules that make one verdict from those of the sections.
* `rendering`: the page as text, from the templates beside it.
"""

from pyro_vi.reporting.page.judging import RULES, Judgement, judged
from pyro_vi.reporting.page.of_comparison import comparison_section
from pyro_vi.reporting.page.of_diagnostics import DIAGNOSTICS, Failed, section_of
from pyro_vi.reporting.page.of_run import fit_section, pictures_section, training_section
from pyro_vi.reporting.page.parts import Page, Section
from pyro_vi.reporting.page.rendering import rendered
from pyro_vi.reporting.page.subject import Subject

__all__ = [
    "DIAGNOSTICS",
    "RULES",
    "Failed",
    "Judgement",
    "Page",
    "Section",
    "Subject",
    "comparison_section",
    "fit_section",
    "judged",
    "pictures_section",
    "rendered",
    "section_of",
    "training_section",
]
