"""`python -m sq.kernels.bench`: the GPU part of `sq-bench`, on a machine with torch and Triton only."""

import sys

from .cli import main

sys.exit(main())
