"""``python -m resfed_codec.cli``: the command ``resfed-codec``."""

import sys

from resfed_codec.cli.main import main

sys.exit(main())
