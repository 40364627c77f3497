"""Take what was trained to where it runs; import the modules one by one: those of a device need no torch."""
