"""Cases that run the package on a device and return results, to compare between devices.

Together they call every function that `device_coverage.callables_of_devices` lists; tests/placement
fails for a function that no case calls.
"""

from __future__ import annotations

from tests.support import device_cases_of_gans, device_cases_of_images

CASES = {**device_cases_of_images.CASES, **device_cases_of_gans.CASES}
