"""Adapt a network with Lightning: its Trainer, its checkpoints."""

import copy

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import convpeft


def draw(count: int, seed: int) -> TensorDataset:
    """Grey pictures of noise with a bright bar, whose height is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    pictures = 0.5 * torch.rand(count, 1, 28, 28, generator=generator)
    for number in range(4):
        pictures[labels == number, :, 6 * number + 2 : 6 * number + 6] += 0.5
    return TensorDataset(pictures, labels)


class Adapted(lightning.LightningModule):
    """A network with an adapter on it; only what the adapter trains goes to the optimiser."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(convpeft.param_groups(self.model), lr=1e-3)


lightning.seed_everything(0)
base = convpeft.load_model("small-cnn", num_classes=10)  # yours: a network with trained weights
adapt = {"method": "lora", "rank": 4, "num_classes": 4}
module = Adapted(convpeft.attach(copy.deepcopy(base), **adapt))

best = ModelCheckpoint("lightning-checkpoints", monitor="accuracy", mode="max")
options = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
trainer = lightning.Trainer(callbacks=[best], enable_model_summary=False, **options)
trainer.fit(module, DataLoader(draw(512, 0), batch_size=32, shuffle=True), DataLoader(draw(200, 1), batch_size=100))
print(f"validation accuracy {best.best_model_score:.1%}")
assert best.best_model_score > 0.9

# A checkpoint of Lightning holds base and adapter: put the same adapter on a base, then read it in.
module = Adapted.load_from_checkpoint(best.best_model_path, model=convpeft.attach(copy.deepcopy(base), **adapt))
convpeft.save(module.model.eval(), "lightning-adapter")  # the adapter alone
again = convpeft.load(copy.deepcopy(base), "lightning-adapter").eval()
with torch.no_grad():
    pictures = draw(200, 1).tensors[0]
    assert torch.equal(again(pictures), module.model(pictures))  # bit for bit
print("saved, loaded, and equal: lightning-adapter")
