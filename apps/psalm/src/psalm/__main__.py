"""`python -m psalm`, the form that launchers start."""

import sys

from psalm.cli import main

if __name__ == "__main__":
    sys.exit(main())
