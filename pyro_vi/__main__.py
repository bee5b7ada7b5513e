"""The command line as a module: `python -m pyro_vi`."""

import sys

from pyro_vi.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
