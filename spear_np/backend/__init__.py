"""Devices, namespaces and the few operations the array API standard lacks; all that is known of CuPy.

Everything else in the package sees arrays through `Device.xp`, an array-API namespace.
"""
