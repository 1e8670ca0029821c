"""Count the tests of a JUnit file: skips by reason, then one closing line `N passed, N failed, N skipped`."""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path


def main(path: str) -> None:
    if not Path(path).is_file():
        sys.exit("pytest wrote no results: it did not start, or was stopped")
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skips = [case.find("skipped") for case in cases]
    reasons = Counter(skip.get("message", "no reason given") for skip in skips if skip is not None)
    for reason, count in reasons.most_common():
        print(f"{count:5d}  {reason}")
    skipped = sum(reasons.values())
    passed = len(cases) - failed - skipped
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    if failed or not passed:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
