"""What a device is and how to reach one."""

if __name__ != "hzo_hil.devices":
    raise ImportError("import this package as hzo_hil.devices: under its bare name every class would exist twice")
