"""Weights files: read without running anything, loaded only where every tensor fits."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convpeft.errors import ModelError
from convpeft.models.weights import differences, head_difference, load_strictly, read_weights


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))


def assert_equal_states(read, expected):
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def refused(path):
    with pytest.raises(ModelError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"weights file {str(path)!r}: ")
    assert "\n" not in message
    return message


def test_safetensors_are_read(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert_equal_states(read_weights(tmp_path / "w.safetensors"), network.state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".bin", ".tar"])
def test_torch_files_are_read(network, tmp_path, suffix):
    torch.save(network.state_dict(), tmp_path / f"w{suffix}")
    assert_equal_states(read_weights(tmp_path / f"w{suffix}"), network.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(network, tmp_path, key):
    torch.save({"epoch": 3, "best": 0.5, key: network.state_dict()}, tmp_path / "w.pth")
    assert_equal_states(read_weights(tmp_path / "w.pth"), network.state_dict())


def test_the_prefix_of_data_parallel_is_removed(network, tmp_path):
    parallel = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": parallel}, tmp_path / "w.th")
    assert_equal_states(read_weights(tmp_path / "w.th"), network.state_dict())


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path):
    marker = tmp_path / "it ran"

    class Attack:
        def __reduce__(self):
            return (type(marker).touch, (marker,))

    torch.save({"state_dict": Attack()}, tmp_path / "w.pth")
    assert "holds Python objects besides tensors" in refused(tmp_path / "w.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Attack()))
    assert "holds Python objects besides tensors" in refused(tmp_path / "bare.pth")
    assert not marker.exists()
    pickle.loads((tmp_path / "bare.pth").read_bytes())
    assert marker.exists(), "the attack is a real one"


def test_a_missing_file_is_named(tmp_path):
    assert "no such file; give the path of a .safetensors or .pth file" in refused(tmp_path / "none.safetensors")


def test_a_folder_is_no_weights_file(tmp_path):
    (tmp_path / "w.pth").mkdir()
    assert "no such file" in refused(tmp_path / "w.pth")


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "w.h5").write_bytes(b"x")
    assert "expected .safetensors or one of .pth" in refused(tmp_path / "w.h5")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0, 7, 100])
def test_a_damaged_file_is_refused(network, tmp_path, suffix, kept):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(path)
    unreadable = "cannot be read (" in message and message.endswith("); get it again.")
    assert unreadable or "is damaged, or holds Python objects" in message


@pytest.mark.parametrize("content", [{}, [1, 2], torch.zeros(3), {"a": torch.zeros(1), "lr": 0.1}, {3: torch.zeros(1)}])
def test_what_is_no_table_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    assert "expected a table of named tensors" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(tmp_path, value):
    save_file({"fine": torch.ones(2), "layer.weight": torch.tensor([1.0, value])}, tmp_path / "w.safetensors")
    assert "tensor 'layer.weight' holds NaN or infinity; get it again" in refused(tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions")  # deprecated by torch, still readable
@pytest.mark.parametrize("kind", ["sparse", "quantised", "claims more"])
def test_a_tensor_that_is_not_plain_is_refused(tmp_path, kind):
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
        "claims more": lambda: torch.zeros(1).expand(1000, 1000),
    }[kind]()
    torch.save({"fine": torch.ones(2), "layer.weight": tensor}, tmp_path / "w.pth")
    assert "tensor 'layer.weight' is sparse, quantised or claims more numbers than the file holds; save" in refused(
        tmp_path / "w.pth"
    )


def test_strict_loading_copies_every_tensor(network):
    state = {name: torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in network.state_dict().items()}
    load_strictly(network, state, file="w")
    assert_equal_states(network.state_dict(), state)


def test_old_files_without_batch_counters_load(network):
    state = {name: tensor + 1 for name, tensor in network.state_dict().items() if "tracked" not in name}
    load_strictly(network, state, file="w")
    assert torch.equal(network[1].running_mean, torch.ones(4))


def test_differences_name_three_of_each_kind(network):
    state = {f"extra{i}": torch.zeros(1) for i in range(5)} | {"0.weight": torch.zeros(4, 1, 3, 3)}
    text = differences(network, state)
    assert text.startswith(
        "7 missing ('0.bias', '1.weight', '1.bias', ...); 5 unexpected ('extra0', 'extra1', 'extra2', "
    )
    assert text.endswith("...); 1 mis-shaped ('0.weight' is (4, 1, 3, 3), expected (4, 3, 3, 3))")


def test_names_in_a_file_cannot_break_the_line(network):
    text = differences(network, {**network.state_dict(), "a\nb" + "c" * 500: torch.zeros(1)})
    assert "'a\\nbccc" in text
    assert len(text) < 200


def test_a_state_that_does_not_fit_leaves_the_model_as_it_was(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    del state["3.bias"]
    with pytest.raises(ModelError, match=r"^w: does not fit the model: 1 missing \('3\.bias'\)\. Use the weights of"):
        load_strictly(network, state, file="w")
    assert_equal_states(network.state_dict(), before)


def test_a_head_of_another_size_is_recognised(network):
    state = {**network.state_dict(), "3.weight": torch.zeros(9, 4), "3.bias": torch.zeros(9)}
    assert head_difference(network, state) == ("3", 9, 5)


@pytest.mark.parametrize(
    "other",
    [
        {"3.weight": torch.zeros(9, 6), "3.bias": torch.zeros(9)},
        {"3.weight": torch.zeros(9, 4), "0.weight": torch.zeros(8, 3, 3, 3)},
        {"3.bias": torch.zeros(9)},
        {},
    ],
)
def test_other_differences_are_no_difference_of_the_head(network, other):
    assert head_difference(network, {**network.state_dict(), **other}) is None
