"""`python -m sprc`, the form that launchers start."""

import sys

from sprc.cli import main

if __name__ == "__main__":
    sys.exit(main())
