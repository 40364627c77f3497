"""Take what was trained to where it runs; the modules that a device needs import neither torch nor typer."""
