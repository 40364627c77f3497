"""Adapt a CNN of transformers with its Trainer: its own loss, its own checkpoints."""

import copy

import torch
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

import convpeft


class Bars(Dataset):
    """Colour pictures of noise with a bright bar, whose height is the class."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 4, (count,), generator=generator)
        self.pictures = 0.5 * torch.rand(count, 3, 32, 32, generator=generator)
        for number in range(4):
            self.pictures[self.labels == number, :, 7 * number + 2 : 7 * number + 6] += 0.5

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pictures[index], "labels": self.labels[index]}


set_seed(0)
config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", num_labels=10)
base = ResNetForImageClassification(config)  # yours: .from_pretrained("microsoft/resnet-18")
model = copy.deepcopy(base)
model.config.num_labels = 4  # the model's own loss reads the number of classes here
convpeft.attach(model, "lora", rank=8, num_classes=4)

arguments = TrainingArguments(
    output_dir="transformers-checkpoints",
    num_train_epochs=3,
    per_device_train_batch_size=16,
    eval_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    use_cpu=True,
    disable_tqdm=True,
)
optimizer = torch.optim.AdamW(convpeft.param_groups(model), lr=1e-2)
trainer = Trainer(model, arguments, train_dataset=Bars(384, 0), eval_dataset=Bars(100, 1), optimizers=(optimizer, None))
trainer.train()
found = trainer.predict(Bars(100, 2))
reached = (found.predictions.argmax(1) == found.label_ids).mean()
print(f"test accuracy {reached:.1%}")
assert reached > 0.9

convpeft.save(model.eval(), "transformers-adapter")  # the adapter alone
again = convpeft.load(copy.deepcopy(base), "transformers-adapter").eval()
with torch.no_grad():
    pictures = Bars(100, 2).pictures
    assert torch.equal(again(pictures).logits, model(pictures).logits)  # bit for bit
print("saved, loaded, and equal: transformers-adapter")
