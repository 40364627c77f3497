"""Read and write the adapter files of other packages: peft, LyCORIS, loralib."""

from convpeft.interop.loralib_form import read_loralib, write_loralib
from convpeft.interop.lycoris_form import read_lycoris, write_lycoris
from convpeft.interop.peft_form import read_peft, write_peft

__all__ = ["read_loralib", "read_lycoris", "read_peft", "write_loralib", "write_lycoris", "write_peft"]
