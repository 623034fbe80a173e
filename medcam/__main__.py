"""`python -m medcam` is the `medcam` command."""

import sys

from medcam.cli import main

sys.exit(main())
