"""A device that has numpy, onnx and convpeft, and nothing else that convpeft asks for."""

import subprocess
import sys

# numpy and onnx with what they are built on; and what comes with Python
DEVICE = """
import sys

class Only:
    allowed = {"convpeft", "numpy", "onnx", "google", "ml_dtypes", "typing_extensions", *sys.stdlib_module_names}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

for name in list(sys.modules):
    if name.partition(".")[0] not in Only.allowed | {"_distutils_hack"} and not name.startswith("_"):
        del sys.modules[name]
sys.meta_path.insert(0, Only())
sys.argv[0] = "convpeft"
from convpeft.__main__ import main
main()
"""


def device(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DEVICE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
