"""One method a file; every file here is found by itself."""
