"""Adapt a network in a training loop of your own: plain PyTorch, nothing else."""

import copy

import torch
from torch.nn.functional import cross_entropy

import convpeft

CLASSES = ("top", "upper", "lower", "bottom")


def draw(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey pictures of noise with a bright bar, whose height is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator)
    pictures = 0.5 * torch.rand(count, 1, 28, 28, generator=generator)
    for number in range(len(CLASSES)):
        pictures[labels == number, :, 6 * number + 2 : 6 * number + 6] += 0.5
    return pictures, labels


def accuracy(model: torch.nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the pictures that are told right."""
    model.eval()
    with torch.no_grad():
        return (model(pictures).argmax(1) == labels).float().mean().item()


torch.manual_seed(0)
base = convpeft.load_model("small-cnn", num_classes=10)  # yours: a network with trained weights
model = convpeft.attach(copy.deepcopy(base), "lora", rank=4, num_classes=len(CLASSES))
print(f"{convpeft.count(model).trainable:,} parameters train")

pictures, labels = draw(512, seed=0)
optimizer = torch.optim.AdamW(convpeft.param_groups(model), lr=1e-3)
for epoch in range(3):
    model.train()
    for rows in torch.randperm(len(labels)).split(32):
        loss = cross_entropy(model(pictures[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

test = draw(200, seed=1)
reached = accuracy(model, *test)
print(f"test accuracy {reached:.1%}")
assert reached > 0.9

convpeft.save(model, "pytorch-adapter", classes=CLASSES)
again = convpeft.load(copy.deepcopy(base), "pytorch-adapter").eval()
with torch.no_grad():
    assert torch.equal(again(test[0]), model(test[0]))  # bit for bit
print("saved, loaded, and equal: pytorch-adapter")
