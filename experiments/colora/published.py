"""What the paper and its repository report that cannot be tried here, with their figures."""

# (what is claimed, the published figures, why it is not testable here)
UNTESTED = (
    (
        "CoLoRA on VGG16 is as accurate on OCTMNIST as transformers, state-space and KAN networks",
        "accuracy / AUC: CoLoRA on VGG16 0.963 / 0.995, on ResNet-50 0.951 / 0.992; MedViT-T/S/L 0.767 / 0.961, "
        "0.782 / 0.960, 0.761 / 0.945; MedViTv2-T/S/B/L 0.927 / 0.993, 0.942 / 0.994, 0.944 / 0.996, 0.952 / 0.996; "
        "MedMamba-T/S/B/X 0.918 / 0.992, 0.929 / 0.991, 0.927 / 0.996, 0.928 / 0.993; MedKAN-S/B/L 0.921 / 0.993, "
        "0.927 / 0.996, 0.925 / 0.994",
        "no such network and no OCTMNIST are at hand. With 1,000 test images the standard error at 96 % is 0.62 "
        "points, and the 0.963 is the best of several runs",
    ),
    (
        "CoLoRA gains over a new head on OCTMNIST with VGG16",
        "mean ± deviation (best): head 0.894 ± 0.007 (0.908), full 0.918 ± 0.005 (0.957), CoLoRA in blocks 2 to 5 "
        "0.959 ± 0.003 (0.966), in all blocks 0.956 ± 0.003 (0.962), in blocks 3 to 5 0.957 ± 0.002 (0.961), in "
        "blocks 4 to 5 0.940 ± 0.003 (0.957), in block 5 0.941 ± 0.002 (0.949)",
        "no VGG16 and no OCTMNIST here; the same question is asked above of other networks and images",
    ),
    (
        "With the same budget CoLoRA is second to residual adapters and ahead of LoRA and BitFit on balanced OCTMNIST",
        "AUC / accuracy / trained: head 0.979 / 0.933 / 0.87 M, adapters 0.995 / 0.957 / 1.50 M, BitFit 0.979 / 0.896 "
        "/ 0.87 M, Conv-LoRA of rank 4, 8, 16 0.991 / 0.944, 0.990 / 0.943, 0.993 / 0.949, CoLoRA 0.994 / 0.954 / "
        "2.54 M",
        "as above. Its Conv-LoRA is a 1 x 1 convolution of low rank, see the counts",
    ),
    (
        "CoLoRA gains over a new head on other data sets",
        "AUC / accuracy, head to CoLoRA: RetinaMNIST 0.756 / 0.527 to 0.776 / 0.552, PathMNIST 0.981 / 0.876 to 0.993 "
        "/ 0.956, BloodMNIST 0.995 / 0.932 to 0.998 / 0.981; top-1: CIFAR-100 0.258 to 0.451, ImageNet-R (part) 0.087 "
        "to 0.109",
        "these data sets are not at hand, except CIFAR-10",
    ),
    (
        "CoLoRA needs little memory in training",
        "GPU peak: full 3.320 GiB, head 2.316, Conv-LoRA of rank 8 3.052, CoLoRA 3.172",
        "no GPU here; [what training costs](training_cost.md) has saved activations of each method. The paper's own "
        "figures are 4 % below full fine-tuning",
    ),
)

# What the paper did and this experiment does not, a line each.
DIFFERENCES = (
    "The paper trains VGG16 with a head of 869,124 parameters (a 1 x 1 convolution and two linear layers), a third of "
    "all that its CoLoRA trains. Here every arm has one new linear layer.",
    "The paper merges after every epoch and draws new factors; the released code trains without merging, keeps the "
    "best epoch and merges once. `colora` is the latter, `colora, merged each epoch` the former. In the code of the "
    "first version, validation before a merge measures the frozen network, and the optimiser keeps its state.",
    "The released code has a bias after each factor. The inner one passes a zero-padded convolution and cannot be "
    "merged exactly. Here there is one bias, at the output.",
    "The paper's *Conv-LoRA* is a 1 x 1 convolution of low rank beside each layer: its parameter counts leave no other "
    "reading. It did not compare CoLoRA with a LoRA of the full kernel, k x k; that is the first question here.",
    "The paper's test split has 1,000 images, whose standard error at 96 % is 0.62 points; its headline is the best of "
    "several runs. Here there are means over folds or seeds with intervals.",
    "The paper trains for 20 epochs on 31,016 to 97,477 images of 224 pixels. Here training is short, images are few "
    "and small.",
)
