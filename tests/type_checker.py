"""How the annotations of pyro_vi are checked in tests: by beartype, and an int may stand where a float is annotated (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
