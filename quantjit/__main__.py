"""``python -m quantjit``."""

import sys

from quantjit.cli import main

sys.exit(main())
