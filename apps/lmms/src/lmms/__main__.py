"""`python -m lmms`, the form that launchers start."""

import sys

from lmms.cli import main

if __name__ == "__main__":
    sys.exit(main())
