"""The errors that a run can end with. Their one sentence names the value and the mend."""


class KitError(Exception):
    """A run that cannot go on: bad input, a missing device, a broken file. Exit code 2."""


class DeviceError(KitError):
    """The device failed or no longer computes: nothing measured after it can be trusted."""


class OutOfDeviceMemoryError(DeviceError):
    """Memory ran out before any work was given to the device: a smaller batch may still run."""


class CaptureError(KitError):
    """A forward cannot be captured as a graph; the device may still compute without one."""
