"""``python -m clipette``, for ``torchrun -m clipette``."""

import sys

from clipette.cli import main

sys.exit(main())
