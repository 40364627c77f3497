"""What the methods that name their layers find on public architectures: heads, norms, everything."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import convpeft

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
