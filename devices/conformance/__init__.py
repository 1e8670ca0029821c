"""The conformance kit: whether a driver does what the contract says, what it measures, and what to change.

    from hzo_hil.devices.conformance import check
    report = check(lambda: MyDevice("COM3"))
    print(report.table())

Needs no torch and no pytest. As tests of your own: `hzo_hil.devices.conformance.as_pytest`.
"""

from hzo_hil.devices.conformance.kit import NAMES, check
from hzo_hil.devices.conformance.report import Report, Row

__all__ = ["NAMES", "Report", "Row", "check"]
