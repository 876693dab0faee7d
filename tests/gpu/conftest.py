"""With NBBCE_TESTS_ON=ptx these tests run on a driver made of tests/ptx.py: for -k "numba or offered"."""

import os

if os.environ.get("NBBCE_TESTS_ON") == "ptx":
    import ptx_driver

    ptx_driver.install()
