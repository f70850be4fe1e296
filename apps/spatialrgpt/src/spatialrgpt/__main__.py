"""`python -m spatialrgpt`, the form that launchers start."""

import sys

from spatialrgpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
