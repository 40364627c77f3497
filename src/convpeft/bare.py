"""The command line of a device that has numpy and onnx but not typer: `convpeft patch` alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from convpeft._version import __version__
from convpeft.errors import ConvpeftError, OptionError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, as the full command line does."""
        self.exit(2, f"convpeft: {message.rstrip('.')}. See `{self.prog} --help`.\n")


def main() -> NoReturn:
    """Run `convpeft patch`; every other command needs what is not installed here."""
    parser = _Parser(
        prog="convpeft",
        description="Only `convpeft patch` works here; pip install 'convpeft[train]' brings the other commands.",
    )
    parser.add_argument("--version", action="version", version=f"convpeft {__version__}")
    commands = parser.add_subparsers(required=True, metavar="patch", dest="command")
    patch = commands.add_parser("patch", help="Make the adapted ONNX network out of the base's and an adapter.")
    patch.add_argument("base", type=Path, metavar="BASE", help="The base's ONNX file.")
    patch.add_argument("adapter", type=Path, metavar="RUN", help="A run's directory, or an adapter's.")
    patch.add_argument("--out", type=Path, required=True, help="File to write, .onnx.")
    given = parser.parse_args()
    try:
        from convpeft.deployment.patching import patch_network

        done = patch_network(given.base, given.adapter, given.out)
    except ConvpeftError as error:
        parser.exit(2 if isinstance(error, OptionError) else 1, f"convpeft: {error}\n")
    except ModuleNotFoundError as error:
        parser.exit(1, f"convpeft: needs the package {error.name}; install it with pip install numpy onnx.\n")
    except OSError as error:
        parser.exit(1, f"convpeft: {error.filename or 'file'}: {error.strerror or error}.\n")
    except MemoryError:
        parser.exit(1, "convpeft: out of memory.\n")
    sys.stdout.write(f"{done}\n")
    sys.exit(0)
