"""Physics only: arrays in, arrays out, units in every docstring. Knows nothing of devices."""

if __name__ != "hzo_hil.simulators":
    raise ImportError("import this package as hzo_hil.simulators: under its bare name every class would exist twice")
