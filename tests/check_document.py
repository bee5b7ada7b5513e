"""The page of the check: ``python tests/check_document.py`` writes it to `docs/check.md`.

* `PROGRAMS` is the folder of a wrong and a right program for each code; `program` imports one.
* `codes` finds the codes of each module of rules in its source.
* `document` is the text of the page.
"""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pyro

import pyro_vi.checking
from pyro_vi import Finding, check
from pyro_vi.support import kept_generators, seed_generators

PROGRAMS = Path(__file__).parent / "checking" / "programs"
DOCUMENT = Path(__file__).parents[1] / "docs" / "check.md"
KINDS = {
    "checks": "Programs and data that cannot be run",
    "sites": "Sites, shapes and plates",
    "values": "Values",
    "scaling": "Masks, scales and the number of data",
    "gradients": "Gradients",
    "closed_forms": "The KL",
    "logarithms": "Bounds of many draws",
    "encoders": "Encoders",
    "vanishing": "Scales that go to 0",
    "probes": "Other rows and several draws",
    "options": "The estimator, the optimizer and Pyro's store",
}
"""Modules of rules, each with the title of its part."""
STATED = re.compile(r'Finding\(\s*"([a-z-]+)",\s*(?:"(?:error|warning|note)"|severity)|"(mixed-\w+)": \(')

INTRODUCTION = """\
# What `check` looks for

`pyro_vi.check(model, guide, batch)` runs both programs on a batch, changes nothing, and returns a list of findings: errors
that would spoil a fit without a message. `pyro-vi check MODEL GUIDE --data DATA` prints them. `fit` and `compare` run the
check first, on the batches that they will use.

* An **error** stops a fit before its first step. `check=False` skips the check.
* A **warning** is printed once, and the fit goes on.
* A **note** is information. Only `check` gives it, not `fit`.

A finding has a `code`, a `severity`, a `site`, a `message` with the numbers that were seen, and a `remedy`. Each cause gives
one finding. If a finding rests on the difference of two estimates, the message has both with their standard errors, and z,
the difference divided by its standard error.

Some faults depend on the options of the fit. Pass those options to `check`: `elbo`, `num_data`, `steps`, `warmup`,
`optimizer` and `shuffle`.

Each section below has a program with the fault, and the message of `check(**WRONG)`. The same program without the fault is
`RIGHT`: `check(**RIGHT)` returns an empty list. `python tests/check_document.py` writes this page.
"""


def program(name: str) -> ModuleType:
    """Import the programs of one code, whose initial parameters are the same each time."""
    spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with kept_generators():
        seed_generators(0)
        spec.loader.exec_module(module)
    return module


def findings(found: ModuleType) -> list[Finding]:
    """The findings on a wrong program."""
    with pyro.get_param_store().scope(), kept_generators():
        getattr(found, "BEFORE", lambda: None)()
        return check(**found.WRONG)


def codes(module: str) -> list[str]:
    """The codes of a module of rules, in the order of its source."""
    source = (Path(pyro_vi.checking.__file__).parent / f"{module}.py").read_text()
    return list(dict.fromkeys(one or other for one, other in STATED.findall(source)))


def document() -> str:
    """Text of `docs/check.md`."""
    rows, parts = [], []
    for module, title in KINDS.items():
        parts.append(f"## {title}")
        for code in codes(module):
            path = PROGRAMS / f"{code.replace('-', '_')}.py"
            found = program(path.stem)
            (finding,) = findings(found)
            about = str(found.__doc__).strip()
            source = path.read_text().split('"""\n', 1)[1].strip()
            rows.append(f"| [`{code}`](#{code}) | {finding.severity} | {about} |")
            parts.append(
                f"### `{code}`\n\n{about}\n\n```python\n{source}\n```\n\n"
                f"{finding.severity.capitalize()}: {finding.message}.\n\nRemedy: {finding.remedy}."
            )
    table = "\n".join(["| code | severity | fault |", "| --- | --- | --- |", *rows])
    return "\n\n".join([INTRODUCTION.strip(), table, *parts]) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
