"""Without a network everything works but a named download, and that names the file to provide."""

import json

import pytest

from measuring import counted
from tiny import write_images

pytestmark = pytest.mark.promise("F08")
# Nothing but unix sockets, which loaders use among themselves. Whoever asks for a name or an address is noted.
BLOCKED = """
import json, socket, sys
asked = []
def refuse(event, given):
    if event == "socket.getaddrinfo" or event == "socket.connect" and given[0].family != socket.AF_UNIX:
        asked.append([event, str(given[-1] if event == "socket.connect" else given[0])])
        raise OSError(101, "Network is unreachable")
sys.addaudithook(refuse)
from convpeft.cli import main
statuses = []
for words in {commands!r}:
    try:
        main(words)
    except SystemExit as end:
        statuses.append(end.code)
print()
print(json.dumps([statuses, asked]))
"""


def run(server, commands: list[list[str]], **environment: str) -> tuple[list[int], list[list[str]], str]:
    process = server.start(BLOCKED.format(commands=commands), **environment)
    assert process.wait(240) == 0, process.said()
    text, _, last = process.said().rstrip("\n").rpartition("\n")
    statuses, asked = json.loads(last)
    return statuses, asked, text


def test_every_command_works_and_asks_nobody(server, tmp_path):
    images, out = write_images(tmp_path / "images"), str(tmp_path / "run")
    base = ["--model", "small-cnn", "--rank", "2", "--epochs", "1"]
    commands = [
        ["train", *base, "--data", f"folder:{images}", "--out", out, "--set", "train.workers=1"],
        ["train", "--resume", out],
        [
            "train",
            "--model",
            "cifar-resnet/20",
            "--set",
            "model.pretrained=false",
            "--data",
            "glyphs:digits",
            "--dry-run",
        ],
        ["evaluate", out],
        ["evaluate", out, "--base"],
        ["predict", out, str(images / "low")],
        ["merge", out, "--out", str(tmp_path / "merged.safetensors")],
        ["inspect", out],
        ["check", "small-cnn", "--random-weights"],
        ["methods"],
        ["methods", "lora"],
        ["datasets"],
        ["--version"],
    ]
    statuses, asked, text = run(server, commands)
    assert statuses == [0] * len(commands), text
    assert asked == []
    counted("commands without a network", len(commands))


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--model", "timm/resnet18.a1_in1k", "--data", "glyphs:digits"], "timm/resnet18.a1_in1k/resolve/main/"),
        (["--model", "torchvision/resnet18:IMAGENET1K_V1", "--data", "glyphs:digits"], "resnet18-f37072fd.pth"),
        (["--model", "small-cnn", "--data", "mnist:"], "train-images-idx3-ubyte.gz"),
        (["--model", "small-cnn", "--data", "cifar10:"], "cifar-10-python.tar.gz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_download_that_fails_names_the_file_to_provide(server, tmp_path, words, name):
    caches = {key: str(tmp_path / key) for key in ("CONVPEFT_CACHE", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE")}
    command = ["train", *words, "--out", str(tmp_path / "run")]
    statuses, asked, text = run(server, [command], **caches)
    assert statuses == [1]
    lines = [line for line in text.splitlines() if line.startswith("convpeft: ")]
    assert len(lines) == 1, text
    assert name in lines[0]
    assert "https://" in lines[0]
    assert "Traceback" not in text
    assert len(asked) >= 1
    assert not (tmp_path / "run").exists()
    counted("downloads named")
