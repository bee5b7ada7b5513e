"""The checker of pyro_vi's annotations in tests: beartype, with an int allowed where a float is annotated (PEP 484)."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
