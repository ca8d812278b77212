"""Output of the Python code in Markdown pages. To update the pages:

python tests/support/page_outputs.py docs/quickstart.md docs/guide.md
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
"""A code block and, if present, the output block right below it."""


def outputs(text: str, page: str) -> list[str]:
    """The output of each block; the blocks run in order in one namespace."""
    namespace: dict[str, Any] = {}
    printed = []
    for block in BLOCK.finditer(text):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block[1], page, "exec"), namespace)
        printed.append(out.getvalue())
    return printed


def main() -> int:
    for page in map(Path, sys.argv[1:]):
        text = page.read_text()
        printed = iter(outputs(text, str(page)))

        def anew(block: re.Match[str], printed: Any = printed) -> str:
            output = next(printed)
            code = f"```python\n{block[1]}```"
            return code if block[2] is None else f"{code}\n\n```text\n{output}```"

        page.write_text(BLOCK.sub(anew, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
