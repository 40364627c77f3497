"""Read and write the adapter files of other packages: peft, LyCORIS, loralib."""

from convpeft.interop.peft_form import read_peft, write_peft

__all__ = ["read_peft", "write_peft"]
