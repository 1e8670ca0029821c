"""Print the last command of README's one code block that begins with a comment: `# TITLE`, TITLE given.

CI has made its own environment: what a line does before its last `&&`, and a `.venv/bin/`, is left out.
"""

import re
import sys
from pathlib import Path

FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def main(title: str) -> None:
    text = Path("README.md").read_text(encoding="utf-8")
    blocks = [block.strip().splitlines() for block in FENCED.findall(text)]
    found = [lines for lines in blocks if lines and lines[0].strip() == f"# {title}"]
    if len(found) != 1:
        sys.exit(f"README.md has {len(found)} code blocks that begin with '# {title}'; there must be exactly one")
    command = re.sub(r"(^|\s)\.venv/bin/", r"\1", found[0][-1].split("&&")[-1].strip())
    if "pytest" not in command:
        sys.exit(f"README.md: the last line of the block '# {title}' does not run pytest: {command!r}")
    print(command)


if __name__ == "__main__":
    main(sys.argv[1])
