"""Check that an sdist holds exactly the files in git, except those excluded on purpose:

    python tests/support/sdist.py dist/resfed_codec-0.1.0.tar.gz

Run it in a checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile

LEFT_OUT = (".", "benchmarks/results/")
"""Developer settings, whose names begin with a dot, and measured results."""


def main() -> int:
    with tarfile.open(sys.argv[1]) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames()} - {"PKG-INFO"}
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    tracked = {name for name in done.stdout.splitlines() if not name.startswith(LEFT_OUT)}
    for text, names in (("missing", tracked - packed), ("not tracked", packed - tracked)):
        for name in sorted(names):
            print(f"{sys.argv[1]}: {text}: {name}")
    return int(packed != tracked)


if __name__ == "__main__":
    sys.exit(main())
