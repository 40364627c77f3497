"""Adapt a network of timm with the parts of timm's own train.py: loader, loss, optimiser, schedule, saver."""

import copy

import numpy as np
import timm
import torch
from PIL import Image
from timm import loss, optim, scheduler, utils

import convpeft


class Bars(torch.utils.data.Dataset):
    """Colour pictures of noise with a bright bar, whose height is the class; the loader sets the transform."""

    def __init__(self, count: int, seed: int) -> None:
        rng, self.transform = np.random.default_rng(seed), None
        self.labels = rng.integers(0, 4, count)
        self.pictures = rng.integers(0, 128, (count, 64, 64, 3), dtype=np.uint8)
        for picture, label in zip(self.pictures, self.labels, strict=True):
            picture[15 * label + 4 : 15 * label + 12] += 127

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.pictures[index])), int(self.labels[index])


utils.random_seed(0)
base = timm.create_model("resnet10t", pretrained=False)  # yours: pretrained=True, and no norm="train"
model = convpeft.attach(copy.deepcopy(base), "lora", rank=4, num_classes=4, norm="train")
here = {"use_prefetcher": False, "num_workers": 0, "persistent_workers": False, "device": torch.device("cpu")}
here |= {"input_size": (3, 64, 64), "batch_size": 32, "crop_pct": 1.0}
train = timm.data.create_loader(Bars(256, 0), is_training=True, no_aug=True, **here)
test = timm.data.create_loader(Bars(96, 1), **here)
optimizer = optim.create_optimizer_v2(convpeft.param_groups(model), opt="adamw", lr=3e-3)
schedule, epochs = scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=5)
smoothed = loss.LabelSmoothingCrossEntropy(0.1)
saver = utils.CheckpointSaver(model, optimizer, checkpoint_dir=".")
for epoch in range(epochs):
    model.train()
    for pictures, labels in train:
        optimizer.zero_grad()
        smoothed(model(pictures), labels).backward()
        optimizer.step()
    schedule.step(epoch + 1)
    with torch.no_grad():
        right = [(model.eval()(pictures).argmax(1) == labels).float().mean().item() for pictures, labels in test]
    best, _ = saver.save_checkpoint(epoch, metric=float(np.mean(right)))
    print(f"epoch {epoch + 1}: test accuracy {np.mean(right):.1%}")
assert best > 0.9
timm.models.load_checkpoint(model, "model_best.pth.tar")  # base and adapter of the best epoch
convpeft.save(model, "timm-adapter")  # the adapter alone
again = convpeft.load(copy.deepcopy(base), "timm-adapter").eval()
with torch.no_grad():
    assert torch.equal(again(pictures), model(pictures))  # bit for bit
