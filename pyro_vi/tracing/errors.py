"""The one exception for a program, an optimizer or a machine that gives no graph to evaluate at once or to compile."""


class NoGraph(RuntimeError):
    """There is no graph, or none that does what the programs do; one line that says why.

    Callers go on eagerly and report the line, or raise `pyro_vi.errors.InputError` with it where a graph was demanded.
    """
