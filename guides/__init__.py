"""Guide families, one per file, imported as `pyro_vi.guides`."""

if __name__ != "pyro_vi.guides":  # otherwise every class would exist twice
    raise ImportError("import pyro_vi.guides, not guides")

TABLE: dict[str, str] = {
    "diag_normal": "pyro_vi.guides.diag_normal:DiagNormal",
    "full_normal": "pyro_vi.guides.full_normal:FullNormal",
    "low_rank_normal": "pyro_vi.guides.low_rank_normal:LowRankNormal",
    "student": "pyro_vi.guides.student:Student",
    "flow": "pyro_vi.guides.flow:Flow",
    "mixture": "pyro_vi.guides.mixture:Mixture",
    "structured": "pyro_vi.guides.structured:Structured",
    "semi_amortized": "pyro_vi.guides.semi_amortized:SemiAmortized",
    "laplace": "pyro_vi.guides.laplace:Laplace",
    "point": "pyro_vi.guides.point:Point",
    "prior": "pyro_vi.guides.prior:Prior",
    "per_datum": "pyro_vi.guides.per_datum:PerDatum",
    "exact": "pyro_vi.guides.exact:Exact",
}
