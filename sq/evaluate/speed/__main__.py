"""`python -m sq.evaluate.speed`: see sq/cli/speed.py."""

import sys

from sq.cli.speed import main

if __name__ == "__main__":
    sys.exit(main())
