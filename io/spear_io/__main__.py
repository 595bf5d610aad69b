"""`python -m spear_io` is the command `spear-np`."""

from __future__ import annotations

import sys

from .cli.main import main

sys.exit(main())
