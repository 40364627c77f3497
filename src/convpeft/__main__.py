"""`python -m convpeft`, and the command `convpeft`; where typer is missing, a device's own small form of it."""

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    try:
        import typer  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError:
        from convpeft.bare import main as run
    else:
        from convpeft.cli import main as run
    run()


if __name__ == "__main__":
    main()
