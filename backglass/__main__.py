"""python -m backglass"""

import sys

from backglass.cli import main

sys.exit(main())
