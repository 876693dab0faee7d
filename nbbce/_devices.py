"""What there is to compute on beside the processor: numba-cuda, a driver, devices.  Nothing here raises.

Looking makes no context on a device, so it takes no memory there and disturbs nobody.
"""

from __future__ import annotations

import contextlib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from nbbce._files import one_line

INSTALL = "python -m pip install 'nbbce[cuda13]', or 'nbbce[cuda12]' for a driver of CUDA 12"


class Device(NamedTuple):
    """A device."""

    name: str
    capability: tuple[int, int]
    memory: int
    """In bytes."""

    @property
    def arch(self) -> str:
        """Its architecture, as compilers name it."""
        major, minor = self.capability
        return f"sm_{major}{minor}"

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, compute capability {major}.{minor}, {self.memory / 2**30:.1f} GiB"


class Found(NamedTuple):
    """What was found."""

    numba_cuda: str | None
    """Its version."""
    driver: str | None
    """Its version, and that of the CUDA it has."""
    devices: tuple[Device, ...]
    missing: str
    """Why there are no devices, in one line; empty if there are."""
    looked: bool = True
    """Whether a driver was looked for, which takes packages."""


def found() -> Found:
    """Look for numba-cuda, a driver and devices."""
    numba_cuda = installed("numba-cuda")
    for package in ("numba-cuda", "array-api-compat"):
        if installed(package) is None:
            return Found(numba_cuda, None, (), f"not looked for: {package} is not installed; {INSTALL}", False)
    try:
        driver: Any = import_module("cuda.bindings.driver")
        cuda = result_of(driver, driver.cuDriverGetVersion())
    except Exception as error:
        # What cuda.bindings says of a library that is not there takes several lines.
        absent = type(error).__name__ == "DynamicLibNotFoundError"
        return Found(
            numba_cuda, None, (), "none found: no driver" if absent else f"none found: no driver: {one_line(error)}"
        )
    name = f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"
    with contextlib.suppress(Exception):  # the number that its users know, which takes a library of its own
        major, *minors = import_module("cuda.core.system").get_kernel_mode_driver_version()
        name = f"{'.'.join([str(major), *(f'{n:02}' for n in minors)])}, {name}"
    try:
        result_of(driver, driver.cuInit(0))
        devices = tuple(_device(driver, index) for index in range(result_of(driver, driver.cuDeviceGetCount())))
    except Exception as error:
        return Found(numba_cuda, name, (), f"none found: {one_line(error)}")
    return Found(numba_cuda, name, devices, "" if devices else "none found")


def _device(driver: Any, index: int) -> Device:
    handle = result_of(driver, driver.cuDeviceGet(index))
    name = result_of(driver, driver.cuDeviceGetName(128, handle)).split(b"\0")[0].decode(errors="replace").strip()
    attributes = driver.CUdevice_attribute
    major, minor = (
        result_of(driver, driver.cuDeviceGetAttribute(attribute, handle))
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    return Device(name, (int(major), int(minor)), int(result_of(driver, driver.cuDeviceTotalMem(handle))))


def result_of(driver: Any, answer: tuple[Any, ...]) -> Any:
    """What a function of the driver returns beside its error, which becomes an exception."""
    error, *values = answer
    if error != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(getattr(error, "name", str(error)))
    return values[0] if values else None


def installed(package: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
