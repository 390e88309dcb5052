"""The emulated Ascend NPU: a stub of CANN, its build script and a launcher."""
