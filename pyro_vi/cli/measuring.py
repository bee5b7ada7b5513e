"""The commands that measure or show a pair: audit, check, evidence and show."""

import dataclasses

from pyro_vi.cli.asking import asked_of
from pyro_vi.cli.commands import Audit, Check, Evidence, Show
from pyro_vi.cli.printing import console, print_json, print_parts
from pyro_vi.errors import UsageError


def audit(command: Audit) -> int:
    """Measure estimators, and print the table and the advice."""
    from pyro_vi.auditing import advise, audit_pair
    from pyro_vi.estimators.table import named
    from pyro_vi.reporting.summary import audit_table

    asked = asked_of(command, command.run)
    batch = asked.batch(command.batch_size)
    found = audit_pair(asked.plan.pair, batch, named(command.elbos), draws=command.draws, seed=command.seed)
    if command.json:
        print_json({**found.to_dict(), "advice": [advice.text for advice in advise(found)]})
        return 0
    shown = console()
    shown.print(audit_table(found, asked.title))
    for advice in advise(found):
        shown.print(advice.text)
    return 0


def check(command: Check) -> int:
    """Check a pair, and print the findings; return 1 if one is an error."""
    from pyro_vi.checking import check_pair
    from pyro_vi.data import length_of
    from pyro_vi.estimators.table import named
    from pyro_vi.fitting import Options, findings_of

    options = Options(steps=command.steps, epochs=command.epochs, warmup=command.warmup)
    own = {} if command.run else {"shuffle": command.shuffle, "drop_last": command.drop_last}
    asked = asked_of(command, command.run, **own)
    batch = asked.batch(command.batch_size)
    estimator = None if command.elbo is None else named(command.elbo)[command.elbo]
    if asked.new:
        findings = check_pair(asked.plan.pair, batch, elbo=estimator, num_data=asked.plan.data.spec.num_data)
    else:
        findings = findings_of(dataclasses.replace(asked.plan, batch_size=length_of(batch)), estimator, options)
    if command.json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding} [{finding.code}]")
        if not findings:
            print(f"nothing found: {asked.title}")
    return int(any(finding.severity == "error" for finding in findings))


def evidence(command: Evidence) -> int:
    """Compute or estimate the evidence, and print it."""
    from pyro_vi.data import length_of
    from pyro_vi.diagnostics import evidence_of_pair

    asked = asked_of(command, command.run)
    on, args = asked.on, asked.rows
    found = evidence_of_pair(
        asked.plan.pair,
        args,
        method=command.method,
        particles=command.particles,
        seed=command.seed,
        start=command.start,
        chains=command.chains,
        steps=command.steps,
        data=command.drawn,
    )
    rows, attrs = length_of(args), found.attrs
    if command.json:
        print_json({"on": on, "rows": rows, **attrs})
        return 0
    if attrs["method"] != "sandwich":
        sampled = f"importance sampling, K = {command.particles}"
        how = {
            "exact": "exact",
            "enum": "exact, by enumeration",
            "prior": f"importance sampling from the prior, K = {command.particles}",
            "ais": f"annealed importance sampling, {command.chains} chains, {command.steps} steps",
        }.get(attrs["method"], sampled)
        if attrs["per"] == "data set":
            error = float(found.mc_se.max())
            print(f"log p(x) = {attrs['total']:.3f} ± {error:.3f} nats for all {rows} {on} data ({how})")
        else:
            print(f"log p(x) = {attrs['value']:.3f} ± {attrs['se']:.3f} nats per {on} datum ({how})")
        if asked.new:
            print(f"all {rows} rows of {command.source} are scored; none of them is held out")
    if attrs["method"] in ("iw", "prior", "ais"):
        print(f"effective draws: median {float(found.ess.median()):.0f}, least {float(found.ess.min()):.1f}")
        print(attrs["note"])
    # The first sentence on an estimate is its number, which is above.
    for sentence in attrs["sentences"][attrs["method"] != "sandwich" :]:
        print(sentence)
    return 0


def show(command: Show) -> int:
    """Print the layout of a pair."""
    from pyro_vi.estimators.table import named
    from pyro_vi.overview import show_pair
    from pyro_vi.overview.tables import layout_tables

    asked = asked_of(command, command.run, batch_size=command.batch_size)
    if asked.new:
        raise UsageError(
            "show --run shows the rows of that fit; leave --data out, or leave --run out to show other data"
        )
    (name, estimator), *_ = named(command.elbo or asked.elbo or "mean_field").items()
    found = show_pair(asked.plan, asked.names, name, estimator, out=command.out)
    if command.json:
        print_json(found.to_dict())
    else:
        print_parts(layout_tables(found))
    return 0
