"""`python -m convpeft`."""

from convpeft.cli import main

main()
