"""Public architectures: LoRA attaches, trains, merges, saves and reloads exactly; the head is found on all of them."""

import copy
import hashlib
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import convpeft
from contract.networks import randomise, relative_error

# Some hundred layers, each rounding 6e-8 of its output, and squeeze-excitation that multiplies the errors.
DEEP_TOLERANCE = 1e-4

NETWORKS = [
    "timm/resnet18",
    "timm/resnext50_32x4d",
    "timm/mobilenetv3_small_100",
    "timm/efficientnet_b0",
    "timm/convnext_atto",
    "timm/regnety_002",
    "timm/densenet121",
    "timm/resnetv2_50",
    "timm/resnetv2_50x1_bit",
    "timm/nf_resnet26",
    "timm/tf_mobilenetv3_small_minimal_100",
    "torchvision/resnet18",
]
MORE_NETWORKS = [
    "timm/mobilevit_xxs",
    "timm/ghostnet_050",
    "timm/repvgg_a0",
    "timm/hrnet_w18_small",
    "timm/res2net50_14w_8s",
    "torchvision/googlenet",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_0",
    "torchvision/mnasnet0_5",
]


def build(source: str) -> nn.Module:
    torch.manual_seed(0)
    library, name = source.split("/")
    if library == "timm":
        model = timm.create_model(name, pretrained=False)
    elif name == "googlenet":
        model = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    else:
        model = torchvision.models.get_model(name, weights=None)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # zero-initialised last norms would hide what happens in their branch
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.momentum = 1.0
    with torch.no_grad():  # statistics that fit, as a pretrained network has; without them activations explode
        model.train()(images(8))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(number))


def digest(model: nn.Module) -> str:
    state = {k: v for k, v in model.state_dict().items() if "convpeft" not in k.split(".")}
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(key.encode() + state[key].contiguous().numpy().tobytes())
    return found.hexdigest()


def train(model: nn.Module, steps: int) -> None:
    model.train()
    optimizer = torch.optim.SGD(convpeft.param_groups(model, lr=1e-2))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images()), torch.tensor([0, 2])).backward()
        nn.utils.clip_grad_norm_(convpeft.trainable_parameters(model), 1.0)
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("source", NETWORKS)
def test_lora_attaches_trains_merges_and_reloads_exactly(source: str, tmp_path: Path) -> None:
    model = build(source)
    base, before, x = copy.deepcopy(model), digest(model), images()
    with torch.no_grad():
        expected = base(x)
    convpeft.attach(model, "lora", rank=2)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    convpeft.detach(model)
    convpeft.attach(model, "lora", rank=2, num_classes=3)
    train(model, 3)
    assert digest(model) == before
    with torch.no_grad():
        expected = model(x)
        assert expected.shape == (2, 3)
        assert torch.isfinite(expected).all()
        convpeft.save(model, tmp_path / "adapter")
        assert torch.equal(convpeft.load(base, tmp_path / "adapter")(x), expected)
        assert relative_error(convpeft.merge(model)(x), expected) <= DEEP_TOLERANCE
    assert not any("convpeft" in key for key in model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("source", NETWORKS + MORE_NETWORKS)
def test_fresh_adapters_change_nothing_and_merged_is_adapted(source: str) -> None:
    model, x = build(source), images()
    with torch.no_grad():
        base_output = model(x)
        for method in convpeft.list_methods():
            if method == "norm-tuning" and not any(site.kind == "norm" for site in convpeft.select(model, ["*"])):
                continue
            convpeft.attach(model, method)
            assert torch.equal(model(x), base_output), method
            randomise(model)
            for name, tensor in model.named_parameters():  # a whole network of 10 % noise is chaos; a hundredth is not
                if tensor.requires_grad and method in ("lora", "full"):
                    tensor.mul_(0.1 if name.endswith((".up", ".down")) else 1)
            expected = model(x)
            if torch.isfinite(expected).all():
                assert relative_error(convpeft.merged(model)(x), expected) <= 10 * DEEP_TOLERANCE, method
            convpeft.detach(model)
            assert torch.equal(model(x), base_output), method


@pytest.mark.parametrize("name", ["nf_resnet26", "convnext_atto", "mobilenetv3_small_100", "vit_tiny_patch16_224"])
def test_full_fine_tuning_trains_every_parameter(name: str) -> None:
    model = timm.create_model(name, pretrained=False)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert convpeft.count(convpeft.attach(model, "full")).trainable == size


def test_norm_tuning_reaches_every_norm_of_a_network_whose_head_has_one() -> None:
    model = timm.create_model("convnext_atto", pretrained=False)
    affine = sum(p.numel() for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters())
    assert convpeft.count(convpeft.attach(model, "norm-tuning")).trainable == affine


def test_probe_trains_the_classifier_alone() -> None:
    model = timm.create_model("convnext_atto", pretrained=False)
    convpeft.attach(model, "probe")
    assert set(convpeft.count(model).layers) == {"head.fc"}


def test_model_without_a_classifier_has_no_head() -> None:
    model = timm.create_model("resnet18", pretrained=False, num_classes=0)
    assert convpeft.sites.find_head(model) is None
    with pytest.raises(convpeft.ConvpeftError, match="classifier"):
        convpeft.attach(model, "lora", num_classes=3)


QUICK_FAMILIES = ["resnet18", "mobilenetv3_small_050", "convnext_atto", "regnety_002", "vgg11", "levit_128s"]
FAMILIES = [
    "beit_base_patch16_224", "bat_resnext26ts", "botnet26t_256", "caformer_s18", "cait_xxs24_224",
    "coat_tiny", "coatnet_pico_rw_224", "convformer_s18", "convit_tiny", "convmixer_768_32", "convnextv2_atto",
    "crossvit_tiny_240", "cspdarknet53", "cspresnet50", "darknet53", "davit_tiny", "deit_tiny_patch16_224",
    "densenet121", "dla34", "dm_nfnet_f0", "dpn68", "eca_nfnet_l0", "edgenext_xx_small", "efficientformer_l1",
    "efficientformerv2_s0", "efficientnet_b0", "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_dw",
    "fasternet_t0", "fastvit_t8", "fbnetc_100", "focalnet_tiny_srf", "gernet_s", "ghostnet_050", "ghostnetv2_100",
    "hardcorenas_a", "hgnet_tiny", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto", "inception_resnet_v2",
    "inception_v3", "inception_v4", "lcnet_035", "legacy_senet154", "legacy_xception", "maxvit_pico_rw_256",
    "mixer_s32_224", "mixnet_s", "mnasnet_050", "mobilenet_edgetpu_v2_xs", "mobilenetv1_100", "mobilenetv2_035",
    "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "nf_regnet_b0", "nf_resnet26",
    "pit_ti_224", "poolformer_s12", "pvt_v2_b0", "regnetx_002", "regnetz_b16", "repghostnet_050", "repvgg_a0",
    "repvit_m0_9", "res2net50_14w_8s", "resmlp_12_224", "resnest14d", "resnetblur18", "resnetrs50", "resnetv2_50",
    "rexnet_100", "rexnetr_100", "selecsls42", "semnasnet_050", "senet154", "seresnet18", "shvit_s1", "skresnet18",
    "spnasnet_100", "starnet_s050", "swin_tiny_patch4_window7_224", "tf_efficientnetv2_b0", "tiny_vit_5m_224",
    "tinynet_e", "tresnet_m", "twins_pcpvt_small", "vgg11_bn", "visformer_tiny", "vit_tiny_patch16_224", "volo_d1_224",
    "wide_resnet50_2", "xception41", "xcit_nano_12_p16_224",
]  # fmt: skip


def assert_timm_head_is_found(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    said = model.pretrained_cfg["classifier"]
    if isinstance(said, str):
        assert convpeft.sites.find_head(model) == said
    else:  # a distilled model has two; an answer of one of them would leave the other on the old classes
        assert convpeft.sites.find_head(model) in (*said, None)


@pytest.mark.parametrize("name", QUICK_FAMILIES)
def test_head_of_a_timm_model_is_the_one_that_timm_names(name: str) -> None:
    assert_timm_head_is_found(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Overwriting", "ignore:Mapping deprecated")
def test_head_of_every_timm_family_is_the_one_that_timm_names() -> None:
    known = set(timm.list_models())
    families = [name for name in FAMILIES if name in known]
    assert len(families) >= 60
    wrong = []
    for name in families:
        try:
            assert_timm_head_is_found(name)
        except AssertionError as error:
            wrong.append((name, str(error).splitlines()[0]))
    assert wrong == []


@pytest.mark.slow
def test_head_of_every_torchvision_classifier_is_its_last_layer() -> None:
    expected = {
        "classifier": ("alexnet", "vgg", "mobilenet_v2", "mobilenet_v3", "efficientnet", "mnasnet", "densenet"),
        "classifier.1": ("squeezenet",),
        "classifier.2": ("convnext",),
        "classifier.5": ("maxvit",),
        "fc": ("resnet", "resnext", "wide_resnet", "regnet", "googlenet", "inception", "shufflenet"),
        "heads": ("vit_",),
        "head": ("swin",),
    }
    wrong = []
    for name in torchvision.models.list_models(module=torchvision.models):
        arguments = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("regnet") and name != "regnet_y_400mf":
            continue  # one class for all of them, and it cannot be built without memory
        with torch.device("meta" if not name.startswith("regnet") else "cpu"):
            model = torchvision.models.get_model(name, weights=None, **arguments)
        found = convpeft.sites.find_head(model)
        prefix = next(prefix for prefix, starts in expected.items() if name.startswith(starts))
        layer = model.get_submodule(found or "")
        size = getattr(layer, "out_features", getattr(layer, "out_channels", None))
        if found is None or not (found == prefix or found.startswith(f"{prefix}.")) or size != 1000:
            wrong.append((name, found))
    assert wrong == []
