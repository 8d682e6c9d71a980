"""Networks of other people's packages, from their own constructors with random weights: `wild_coverage.py` prunes them.

`NETWORKS` maps "package:network" to a function that builds the network and example inputs for `slim.plan`. The smallest
variants and small inputs, because there are many. Packages are imported when their first network is built.
`uv sync --group wild` installs most of them. These come as sources or pin old versions, so they are for an environment
of their own, where each can be left out:

    uv pip install asteroid dynamic-network-architectures easyocr efficientnet_pytorch encodec facenet-pytorch gdown
    uv pip install lightly pretrainedmodels pytorchvideo spikingjelly torchreid
    uv pip install basicsr bottleneck-transformer-pytorch deepinv denoiser efficientnet-lite-pytorch enformer-pytorch
    uv pip install g-mlp-pytorch halonet-pytorch instanseg-torch iTransformer lambda-networks perceiver-pytorch
    uv pip install pytorch-tabnet pytorch3dunet realesrgan res-mlp-pytorch resnest rfdetr segment-anything
    uv pip install segmentation-refinement ternausnet torchgeo unet vocos yolov5
    uv pip install bigvgan compressai fastai lpips openai-whisper pytorch-tcn torch-uncertainty torchseg x-transformers
    uv pip install --no-deps tsai==0.4.1

basicsr and realesrgan import `torchvision.transforms.functional_tensor`, which torchvision calls `functional` by now.
"""

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Network = tuple[nn.Module, Any]  # with example inputs: a tensor, a tuple of arguments, or a dict of keyword arguments


class Lazy:
    """A module that is imported when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        torch.version.cuda = None  # torchaudio refuses to be imported beside a torch for another CUDA
        return getattr(importlib.import_module(self._name), attribute)


def image(side: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(1, channels, side, side)


def volume(side: int = 32, channels: int = 1) -> Tensor:
    return torch.randn(1, channels, side, side, side)


# -- many networks alike -----------------------------------------------------------------------------------------------


def ultralytics(yaml: str) -> Network:
    name = yaml.removesuffix("-train")
    tasks = Lazy("ultralytics.nn.tasks")
    kinds = {
        "rtdetr": "RTDETRDetectionModel",
        "cls": "ClassificationModel",
        "seg": "SegmentationModel",
        "pose": "PoseModel",
        "obb": "OBBModel",
    }
    kind = next((kinds[word] for word in kinds if word in name), "DetectionModel")
    model = getattr(tasks, kind)(f"{name}.yaml", verbose=False)
    return model.train(yaml.endswith("-train")), image(128 if "cls" not in name else 64)


def segmentation(architecture: str, encoder: str, **settings: Any) -> Network:
    smp = Lazy("segmentation_models_pytorch")
    return getattr(smp, architecture)(encoder, encoder_weights=None, classes=3, **settings), image(128)


def transformers(config: str, model: str, inputs: Callable[[], Any], **settings: Any) -> Network:
    hf = Lazy("transformers")
    return getattr(hf, model)(getattr(hf, config)(**settings)), inputs()


def timm(name: str, side: int = 64, **settings: Any) -> Network:
    return Lazy("timm").create_model(name, **settings), image(side)


def torchvision(name: str, side: int = 64) -> Network:
    return Lazy("torchvision.models").get_model(name, weights=None), image(side)


def braindecode(name: str, channels: int = 22, times: int = 1000, rate: int = 250, **settings: Any) -> Network:
    model = getattr(Lazy("braindecode.models"), name)
    x = torch.randn(1, channels, times)
    return model(n_chans=channels, n_outputs=4, n_times=times, sfreq=rate, **settings), x


def tsai(name: str, **settings: Any) -> Network:
    return getattr(Lazy("tsai.models.all"), name)(3, 4, **settings), torch.randn(1, 3, 96)


def from_model(module: str, name: str, x: Callable[[], Any], *arguments: Any, **settings: Any) -> Network:
    """A class or function of a module, by its name there, called; with inputs."""
    return attrgetter(name)(Lazy(module))(*arguments, **settings), x()


Builders = dict[str, Callable[[], Network]]


def each(package: str, build: Callable[..., Network], names: str, **settings: Any) -> Builders:
    """A network for each of the names, which spaces separate."""
    return {f"{package}:{name}": partial(build, name, **settings) for name in names.split()}


# -- the table ---------------------------------------------------------------------------------------------------------

ULTRALYTICS: Builders = each(
    "ultralytics",
    ultralytics,
    "yolov3-tiny yolov5n yolov6n yolov8n yolov8n-train yolov8n-ghost yolov8n-p2 yolov9t yolov10n yolo11n "
    "yolo12n yolo26n rtdetr-resnet50 yolov8n-rtdetr yolov8n-seg yolo11n-seg yolo12n-seg yolo26n-seg "
    "yolov8n-pose yolo11n-pose yolo26n-pose yolov8n-obb yolo11n-obb yolo26n-obb yolov8n-cls yolo11n-cls yolo12n-cls "
    "yolo26n-cls yolov9c-seg",
)

SMP: Builders = {
    f"smp:{architecture} {encoder}{' ' + ' '.join(settings) if settings else ''}": partial(
        segmentation, architecture, encoder, **settings
    )
    for architecture, encoder, settings in (
        ("DeepLabV3", "resnet18", {}),
        ("DeepLabV3Plus", "timm-regnetx_002", {}),
        ("FPN", "dpn68", {}),
        ("FPN", "mobilenet_v2", {}),
        ("FPN", "timm-skresnet18", {}),
        ("Linknet", "se_resnet50", {}),
        ("Linknet", "tu-convnext_atto", {}),
        ("MAnet", "resnet18", {}),
        ("PAN", "tu-mobilenetv3_small_100", {}),
        ("PSPNet", "resnet18", {}),
        ("Segformer", "mobileone_s0", {}),
        ("UPerNet", "tu-tiny_vit_5m_224", {}),
        ("Unet", "densenet121", {}),
        ("Unet", "inceptionresnetv2", {}),
        ("Unet", "mit_b0", {}),
        ("Unet", "resnet18", {}),
        ("Unet", "resnet18", {"decoder_attention_type": "scse", "aux_params": {"classes": 4, "pooling": "avg"}}),
        ("Unet", "timm-res2net50_26w_4s", {}),
        ("Unet", "vgg11_bn", {}),
        ("Unet", "xception", {}),
        ("UnetPlusPlus", "efficientnet-b0", {}),
        ("DPT", "tu-vit_tiny_patch16_224", {"dynamic_img_size": True}),
    )
}


def pixels(side: int = 64) -> dict[str, Tensor]:
    return {"pixel_values": image(side)}


def features(length: int, channels: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_features": torch.randn(1, length, channels)}


def _hf(name: str, model: str, inputs: Callable[[], Any] = pixels, config: str = "", **settings: Any) -> Builders:
    return {f"transformers:{name}": partial(transformers, config or f"{name}Config", model, inputs, **settings)}


TRANSFORMERS: Builders = {
    **_hf("Beit", "BeitModel", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
          image_size=64),
    **_hf("Bit", "BitForImageClassification", embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1],
          num_groups=8),
    **_hf("ConvNext", "ConvNextForImageClassification", hidden_sizes=[24, 32, 48, 64], depths=[1, 1, 2, 1]),
    **_hf("ConvNextV2", "ConvNextV2ForImageClassification", hidden_sizes=[24, 32, 48, 64], depths=[1, 1, 2, 1]),
    **_hf("Cvt", "CvtForImageClassification"),
    **_hf("DPT", "DPTForDepthEstimation", hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
          intermediate_size=128, image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3],
          neck_hidden_sizes=[16, 32, 48, 64], fusion_hidden_size=32),
    **_hf("Dinov2", "Dinov2Model", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56),
    **_hf("DetrResNet", "DetrForObjectDetection", config="DetrConfig", encoder_layers=1, decoder_layers=1, d_model=64,
          encoder_ffn_dim=128, decoder_ffn_dim=128, encoder_attention_heads=4, decoder_attention_heads=4,
          num_queries=10, use_pretrained_backbone=False),
    **_hf("EfficientNet", "EfficientNetForImageClassification", width_coefficient=0.5, depth_coefficient=0.5,
          hidden_dim=640),
    **_hf("FocalNet", "FocalNetForImageClassification", embed_dim=32, depths=[1, 1, 2, 1], image_size=64),
    **_hf("GLPN", "GLPNForDepthEstimation", hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1],
          num_attention_heads=[1, 2, 4, 8]),
    **_hf("HGNetV2", "HGNetV2ForImageClassification"),
    **_hf("Hiera", "HieraModel", embed_dim=32, image_size=[224, 224], depths=[1, 1, 2, 1],
          inputs=partial(pixels, 224)),
    **_hf("Levit", "LevitForImageClassification", inputs=partial(pixels, 224), image_size=224),
    **_hf("MobileNetV1", "MobileNetV1ForImageClassification"),
    **_hf("MobileNetV2", "MobileNetV2ForImageClassification"),
    **_hf("MobileNetV2 segmentation", "MobileNetV2ForSemanticSegmentation", config="MobileNetV2Config"),
    **_hf("MobileViT", "MobileViTForImageClassification"),
    **_hf("MobileViTV2", "MobileViTV2ForImageClassification", width_multiplier=0.5),
    **_hf("PoolFormer", "PoolFormerForImageClassification", hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1]),
    **_hf("Pvt", "PvtForImageClassification", image_size=64, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1],
          num_attention_heads=[1, 2, 4, 8]),
    **_hf("PvtV2", "PvtV2ForImageClassification", image_size=64, depths=[1, 1, 1, 1]),
    **_hf("PPLCNet", "PPLCNetForImageClassification"),
    **_hf("PatchTSMixer", "PatchTSMixerForPrediction", lambda: {"past_values": torch.randn(1, 32, 3)},
          num_input_channels=3, context_length=32, norm_mlp="BatchNorm", prediction_length=8),
    **_hf("PatchTST", "PatchTSTForPrediction", lambda: {"past_values": torch.randn(1, 32, 3)},
          num_input_channels=3, context_length=32, prediction_length=8),
    **_hf("RegNet", "RegNetForImageClassification", embedding_size=16, hidden_sizes=[32, 64, 96, 128],
          depths=[1, 1, 2, 1], groups_width=16),
    **_hf("ResNet", "ResNetForImageClassification", depths=[2, 2, 2, 2], layer_type="basic",
          hidden_sizes=[64, 128, 256, 512]),
    **_hf("RTDetr", "RTDetrForObjectDetection", partial(pixels, 128), num_queries=30, decoder_layers=2),
    **_hf("SegFormer", "SegformerForSemanticSegmentation", config="SegformerConfig", depths=[1, 1, 1, 1]),
    **_hf("Swin", "SwinForImageClassification", image_size=64, patch_size=4, embed_dim=24, depths=[1, 2],
          num_heads=[1, 2], window_size=4),
    **_hf("Swin2SR", "Swin2SRForImageSuperResolution", image_size=64, embed_dim=24, depths=[2, 2], num_heads=[2, 2],
          window_size=8),
    **_hf("SwiftFormer", "SwiftFormerForImageClassification", partial(pixels, 224)),
    **_hf("TextNet", "TextNetForImageClassification"),
    **_hf("TimmBackbone", "TimmBackbone", config="TimmBackboneConfig", backbone="resnet18",
          use_pretrained_backbone=False),
    **_hf("UPerNet", "UperNetForSemanticSegmentation", partial(pixels, 128), config="UperNetConfig", hidden_size=64,
          auxiliary_channels=32, auxiliary_in_channels=1024),
    **_hf("ViT", "ViTForImageClassification", hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
          intermediate_size=128, image_size=64),
    **_hf("ViTMAE", "ViTMAEModel", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
          image_size=64, mask_ratio=0.0),
    **_hf("ViTDet", "VitDetModel", config="VitDetConfig", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
          image_size=64),
    **_hf("Yolos", "YolosForObjectDetection", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
          intermediate_size=128, image_size=[64, 64], num_detection_tokens=5),
    **_hf("ParakeetCTC", "ParakeetForCTC", features(64, 80), config="ParakeetCTCConfig",
          encoder_config={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "intermediate_size": 128, "subsampling_conv_channels": 32}),
    **_hf("Wav2Vec2Conformer", "Wav2Vec2ConformerModel", lambda: torch.randn(1, 4000), hidden_size=64,
          num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, conv_dim=(32,) * 7,
          num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4),
    **_hf("Wav2Vec2", "Wav2Vec2Model", lambda: torch.randn(1, 4000), hidden_size=64, num_hidden_layers=2,
          num_attention_heads=4, intermediate_size=128, conv_dim=(32,) * 7, num_conv_pos_embeddings=16,
          num_conv_pos_embedding_groups=4),
    **_hf("AST", "ASTForAudioClassification", lambda: torch.randn(1, 64, 32), hidden_size=64, num_hidden_layers=2,
          num_attention_heads=4, intermediate_size=128, max_length=64, num_mel_bins=32),
    **_hf("Mask2Former", "Mask2FormerForUniversalSegmentation", partial(pixels, 128), feature_size=32,
          mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=64, dim_feedforward=64,
          num_attention_heads=4, encoder_layers=1, decoder_layers=2, num_queries=8),
}  # fmt: skip

NETS, BLOCKS = "monai.networks.nets", "monai.networks.blocks"


def _monai(name: str, x: Callable[[], Any], key: str = "", **settings: Any) -> Builders:
    return {f"monai:{key or name}": partial(from_model, NETS, name, x, **settings)}


SLICE = partial(image, 64, 1)
U: dict[str, Any] = {"in_channels": 1, "out_channels": 2}
MONAI: Builders = {
    **_monai("AHNet", partial(image, 128, 1), spatial_dims=2, upsample_mode="bilinear", **U),
    **_monai("AttentionUnet", SLICE, spatial_dims=2, channels=(16, 32, 64), strides=(2, 2), **U),
    **_monai("AutoEncoder", SLICE, spatial_dims=2, channels=(16, 32, 64), strides=(2, 2, 2), norm="batch", **U),
    **_monai("AutoencoderKL", SLICE, spatial_dims=2, channels=(16, 32), latent_channels=4, num_res_blocks=1,
             norm_num_groups=8, attention_levels=(False, False), **U),
    **_monai("BasicUNet", SLICE, "BasicUNet batch", spatial_dims=2, features=(16, 16, 32, 32, 64, 16),
             norm="batch", **U),
    **_monai("BasicUNet", SLICE, "BasicUNet instance", spatial_dims=2, features=(16, 16, 32, 32, 64, 16), **U),
    **_monai("BasicUNetPlusPlus", SLICE, "BasicUNetPlusPlus batch", spatial_dims=2, features=(16, 16, 32, 32, 64, 16),
             norm="batch", **U),
    **_monai("DenseNet121", volume, "DenseNet121 3d", spatial_dims=3, **U),
    **_monai("DynUNet", SLICE, "DynUNet batch", spatial_dims=2, kernel_size=[3, 3, 3], strides=[1, 2, 2],
             upsample_kernel_size=[2, 2], filters=[16, 32, 64], norm_name="batch", **U),
    **_monai("DynUNet", volume, "DynUNet instance 3d", spatial_dims=3, kernel_size=[3, 3, 3], strides=[1, 2, 2],
             upsample_kernel_size=[2, 2], filters=[16, 32, 64], **U),
    **_monai("EfficientNetBN", image, model_name="efficientnet-b0", pretrained=False),
    **_monai("FlexibleUNet", partial(image, 64, 1), backbone="efficientnet-b0", **U),
    **_monai("HighResNet", partial(volume, 16), spatial_dims=3, **U),
    **_monai("MedNeXt", volume, spatial_dims=3, init_filters=16, **U),
    **_monai("RegUNet", SLICE, spatial_dims=2, in_channels=1, num_channel_initial=16, depth=2, out_channels=2),
    **_monai("ResNet", volume, "ResNet 3d", block="basic", layers=[1, 1, 1, 1], block_inplanes=[16, 32, 64, 128],
             spatial_dims=3, n_input_channels=1),
    **_monai("SEResNet50", SLICE, spatial_dims=2, in_channels=1),
    **_monai("SegResNet", volume, "SegResNet batch", spatial_dims=3, init_filters=16, norm="batch", **U),
    **_monai("SegResNet", SLICE, "SegResNet group", spatial_dims=2, init_filters=16, **U),
    **_monai("SegResNetDS", SLICE, spatial_dims=2, init_filters=16, norm="batch", **U),
    **_monai("SwinUNETR", partial(image, 64, 1), feature_size=12, spatial_dims=2, **U),
    **_monai("UNETR", partial(image, 64, 1), img_size=64, feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4,
             spatial_dims=2, **U),
    **_monai("UNet", SLICE, "UNet 2d batch", spatial_dims=2, channels=(16, 32, 64), strides=(2, 2), num_res_units=2,
             norm="batch", **U),
    **_monai("UNet", volume, "UNet 3d batch", spatial_dims=3, channels=(16, 32, 64), strides=(2, 2), norm="batch", **U),
    **_monai("UNet", volume, "UNet 3d instance", spatial_dims=3, channels=(16, 32, 64), strides=(2, 2), **U),
    **_monai("VNet", volume, spatial_dims=3, **U),
    **_monai("ViT", SLICE, in_channels=1, img_size=64, patch_size=16, hidden_size=48, mlp_dim=96, num_layers=2,
             num_heads=4, spatial_dims=2, classification=True),
    **_monai("VQVAE", SLICE, spatial_dims=2, channels=(16, 32), num_res_channels=16, num_res_layers=1,
             downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2, num_embeddings=16,
             embedding_dim=8, **U),
}  # fmt: skip


def spectrogram(frames: int = 64, bands: int = 80) -> Tensor:
    return torch.randn(1, frames, bands)


def waveform(samples: int = 8000) -> Tensor:
    return torch.randn(1, 1, samples)


def _of(
    package: str, module: str, name: str, x: Callable[[], Any], *arguments: Any, key: str = "", **settings: Any
) -> Builders:
    return {f"{package}:{key or name}": partial(from_model, module, name, x, *arguments, **settings)}


def _conformer() -> Network:
    model = Lazy("torchaudio.models").Conformer(80, 4, 128, 2, 15)
    return model, (spectrogram(), torch.tensor([64]))


def _tacotron() -> Network:
    model = Lazy("torchaudio.models").Tacotron2(
        n_symbol=40, symbol_embedding_dim=64, encoder_embedding_dim=64, encoder_n_convolution=2
    )
    tokens, mel = torch.randint(0, 40, (1, 12)), torch.randn(1, 80, 20)
    return model, (tokens, torch.tensor([12]), mel, torch.tensor([20]))


def _emformer() -> Network:
    return Lazy("torchaudio.models").Emformer(80, 4, 128, 2, 4), (spectrogram(16), torch.tensor([12]))


def _wavernn() -> Network:
    model = Lazy("torchaudio.models").WaveRNN(
        upsample_scales=[5, 5, 8], n_classes=16, hop_length=200, n_rnn=64, n_fc=64, n_hidden=32, n_output=32
    )
    return model, (waveform((10 - 4) * 200), torch.randn(1, 1, 128, 10))


AUDIO: Builders = {
    "torchaudio:Conformer": _conformer,
    "torchaudio:Emformer": _emformer,
    "torchaudio:Tacotron2": _tacotron,
    "torchaudio:WaveRNN": _wavernn,
    **_of("torchaudio", "torchaudio.models", "ConvTasNet", waveform, msk_num_layers=3, msk_num_stacks=1,
          enc_num_feats=64, msk_num_feats=32, msk_num_hidden_feats=64),
    **_of("torchaudio", "torchaudio.models", "Wav2Letter", waveform, input_type="waveform", num_features=1),
    **_of("torchaudio", "torchaudio.models", "DeepSpeech", lambda: torch.randn(1, 1, 32, 80), 80, n_hidden=64),
    **_of("torchaudio", "torchaudio.models", "HDemucs", lambda: torch.randn(1, 2, 44100), ["a", "b"], channels=8),
    **_of("speechbrain", "speechbrain.lobes.models.CRDNN", "CRDNN", spectrogram, input_size=80, cnn_channels=(16, 32),
          cnn_kernelsize=(3, 3), rnn_layers=1, rnn_neurons=32, dnn_neurons=32, time_pooling=False),
    **_of("speechbrain", "speechbrain.lobes.models.ContextNet", "ContextNet", spectrogram, input_shape=(1, 64, 80),
          out_channels=32, conv_channels=[16, 16, 32], strides=[1, 2, 1], num_blocks=3, num_layers=2),
    **_of("speechbrain", "speechbrain.lobes.models.ECAPA_TDNN", "ECAPA_TDNN", spectrogram, 80,
          channels=[64, 64, 64, 64, 192], lin_neurons=32, attention_channels=32, se_channels=32),
    **_of("speechbrain", "speechbrain.lobes.models.Xvector", "Xvector", spectrogram, in_channels=80,
          tdnn_blocks=3, tdnn_channels=[64, 64, 96], tdnn_kernel_sizes=[5, 3, 1], tdnn_dilations=[1, 2, 1],
          lin_neurons=32),
    **_of("speechbrain", "speechbrain.lobes.models.Cnn14", "Cnn14", spectrogram, mel_bins=80, emb_dim=512),
    **_of("asteroid", "asteroid.models", "ConvTasNet", waveform, 2, n_blocks=2, n_repeats=1, n_filters=64, bn_chan=32,
          hid_chan=64, norm_type="bN"),
    **_of("asteroid", "asteroid.models", "SuDORMRFNet", waveform, 2, bn_chan=32, num_blocks=2, upsampling_depth=3,
          n_filters=64),
    **_of("asteroid", "asteroid.models", "DCUNet", partial(waveform, 16000), "DCUNet-10",
          fix_length_mode="pad"),
    **_of("asteroid", "asteroid.models", "DPRNNTasNet", partial(waveform, 2000), 2, n_repeats=1, n_filters=32,
          bn_chan=32, hid_size=32, chunk_size=20),
    **_of("asteroid", "asteroid.models", "DeMask", waveform, hidden_dims=(64, 64)),
    **_of("openunmix", "openunmix.model", "OpenUnmix", lambda: torch.randn(1, 2, 129, 12), 129, 2, hidden_size=32,
          nb_layers=1),
    **_of("encodec", "encodec.modules", "SEANetEncoder", partial(waveform, 3200), n_filters=8, norm="none"),
    **_of("encodec", "encodec.modules", "SEANetDecoder", lambda: torch.randn(1, 32, 10), dimension=32, n_filters=8,
          key="SEANetDecoder weight_norm"),
    **_of("demucs", "demucs.demucs", "Demucs", lambda: torch.randn(1, 2, 22050), ["a", "b"], channels=8, depth=4),
    **_of("torchcrepe", "torchcrepe", "Crepe", lambda: torch.randn(1, 1024), "tiny"),
    **_of("panns", "panns_inference.models", "Cnn14", lambda: torch.randn(1, 32000), 32000, 1024, 320, 64, 50, 14000,
          527),
}  # fmt: skip

BRAINDECODE: Builders = {
    **each("braindecode", braindecode, "ATCNet AttentionBaseNet BDTCN CTNet Deep4Net EEGConformer EEGITNet "
           "EEGInceptionERP EEGInceptionMI EEGNeX EEGNet EEGTCNet FBCNet FBLightConvNet FBMSNet HybridNet IFNet "
           "MSVTNet SCCNet SPARCNet ShallowFBCSPNet SyncNet TIDNet TSception"),
    "braindecode:USleep": partial(braindecode, "USleep", channels=2, times=3000, rate=100),
    "braindecode:SleepStagerChambon2018": partial(braindecode, "SleepStagerChambon2018", channels=2, times=3000,
                                                  rate=100),
    "braindecode:AttnSleep": partial(braindecode, "AttnSleep", channels=1, times=3000, rate=100),
}  # fmt: skip

TSAI: Builders = {
    **each("tsai", tsai, "FCN InceptionTime ResCNN ResNet TCN xresnet1d18 XceptionTime GRU LSTM"),
    **each("tsai", tsai, "LSTM_FCN TST OmniScaleCNN TSiT gMLP MLP XCM mWDN", seq_len=96),
}  # fmt: skip

PYTORCHCV: Builders = each(
    "pytorchcv",
    lambda name: (
        Lazy("pytorchcv.model_provider").get_model(name, pretrained=False),
        image(224),  # their last pool is as large as what images of this size come to
    ),
    "bagnet9 bam_resnet18 cbam_resnet18 channelnet condensenet74_c4_g4 darknet53 dla34 "
    "dicenet_wd5 espnetv2_wd2 fdmobilenet_wd4 fishnet99 hardnet39ds igcv3_wd4 "
    "menet108_8x1_g3 mnasnet_b1 peleenet "
    "proxylessnas_cpu rir_cifar10 selecsls42b shufflenet_g1_w1 spnasnet squeezenet_v1_1 vovnet27s",
)

TORCHREID: Builders = each(
    "torchreid",
    lambda name: (
        Lazy("torchreid.reid.models").build_model(name, 10, pretrained=False, use_gpu=False),
        torch.randn(1, 3, *{"hacnn": (160, 64), "mudeep": (256, 128)}.get(name, (128, 64))),
    ),
    "hacnn mlfn mudeep osnet_ain_x1_0 osnet_x0_25 osnet_ibn_x1_0 pcb_p6 resnet50mid se_resnet50 shufflenet",
)

PRETRAINED: Builders = each(
    "pretrainedmodels",
    lambda name: (
        getattr(Lazy("pretrainedmodels"), name)(num_classes=1000, pretrained=None),
        image({"bninception": 229, "xception": 128}.get(name, 224)),
    ),
    "bninception se_resnext50_32x4d xception nasnetamobile",
)

TIMM: Builders = {
    f"timm:{name}{' ' + ' '.join(settings) if settings else ''}": partial(timm, name, side, **settings)
    for name, side, settings in (
        ("convmixer_768_32", 64, {}),
        ("convnext_atto", 64, {}),
        ("convnextv2_atto", 64, {}),
        ("resnet18", 64, {}),
        ("resnetv2_50x1_bit", 64, {}),  # GroupNorm, standardised weights
        ("resnet50_gn", 64, {}),
        ("vit_tiny_patch16_224", 224, {}),
        ("deit_tiny_distilled_patch16_224", 224, {}),
        ("swin_tiny_patch4_window7_224", 224, {}),
        ("swinv2_cr_tiny_ns_224", 224, {}),
        ("mixer_s32_224", 224, {}),
        ("gmlp_ti16_224", 224, {}),
        ("maxvit_rmlp_pico_rw_256", 256, {}),
        ("coatnet_nano_rw_224", 224, {}),
        ("mobilevit_xxs", 64, {}),
        ("edgenext_xx_small", 64, {}),
        ("poolformer_s12", 64, {}),
        ("caformer_s18", 64, {}),
        ("xcit_nano_12_p16_224", 224, {}),
        ("nfnet_f0", 64, {}),
        ("efficientvit_b0", 64, {}),
        ("fastvit_t8", 64, {"features_only": True}),
        ("hgnetv2_b0", 64, {"features_only": True}),
        ("mobilenetv4_conv_small", 64, {"features_only": True}),
        ("mobilenetv4_hybrid_medium", 128, {}),
        ("mobileone_s0", 64, {}),
        ("repghostnet_050", 64, {}),
        ("repvit_m0_9", 64, {"features_only": True}),
        ("starnet_s1", 64, {}),
        ("tiny_vit_5m_224", 224, {}),
        ("ghostnetv3_050", 64, {}),
        ("davit_tiny", 64, {}),
        ("levit_128s", 224, {}),
        ("pit_ti_224", 224, {}),
        ("cait_xxs24_224", 224, {}),
        ("inception_next_atto", 64, {}),
    )
}

TORCHVISION: Builders = {
    **each("torchvision", torchvision, "convnext_tiny swin_t resnet18 mobilenet_v3_small densenet121"),
    **each("torchvision", torchvision, "vit_b_32 maxvit_t swin_v2_t", side=224),
}

VIT = "vit_pytorch"


def _vit(name: str, module: str = "", key: str = "", **settings: Any) -> Builders:
    module = f"{VIT}.{module}" if module else VIT
    return {f"vit_pytorch:{key or name}": partial(from_model, module, name, image, **{"num_classes": 5, **settings})}


SMALL: dict[str, Any] = {"image_size": 64, "patch_size": 16, "dim": 64, "depth": 2, "heads": 4, "mlp_dim": 96}
VIT_PYTORCH: Builders = {
    **_vit("ViT", **SMALL),
    **_vit("SimpleViT", **SMALL),
    **_vit("CCT", "cct", img_size=64, embedding_dim=64, n_conv_layers=1, kernel_size=3, num_layers=2, num_heads=4,
           mlp_ratio=2.0),
    **_vit("CvT", "cvt", s1_emb_dim=16, s2_emb_dim=32, s2_heads=2, s3_emb_dim=48, s3_heads=2, s3_depth=2),
    **_vit("LeViT", "levit", image_size=64, stages=2, dim=(32, 64), depth=2, heads=(2, 2), mlp_mult=2),
    **_vit("MobileViT", "mobile_vit", image_size=(64, 64), dims=[24, 32, 48],
           channels=[8, 8, 16, 16, 24, 24, 32, 32, 48, 48, 96]),
    **_vit("MaxViT", "max_vit", dim=16, depth=(1, 1), window_size=2, dim_head=8, dim_conv_stem=16),
    **_vit("DeepViT", "deepvit", **SMALL),
}  # fmt: skip


def super_image(name: str) -> Network:
    package = Lazy("super_image")
    return getattr(package, f"{name}Model")(getattr(package, f"{name}Config")(scale=2)), image(24)


def _maps_of(height: int, width: int) -> Callable[[], dict[str, Any]]:
    """Inputs of docTR, which returns words otherwise."""
    return lambda: {"x": torch.randn(1, 3, height, width), "return_model_output": True}


OTHERS: Builders = {
    **_of("facenet", "facenet_pytorch", "InceptionResnetV1", partial(image, 128), classify=True, num_classes=10),
    **_of("facenet", "facenet_pytorch.models.mtcnn", "RNet", partial(image, 24), pretrained=False),
    **_of("efficientnet_pytorch", "efficientnet_pytorch", "EfficientNet.from_name", partial(image, 128),
          "efficientnet-b0", key="b0"),
    **_of("kornia", "kornia.filters.dexined", "DexiNed", image, pretrained=False),
    **_of("kornia", "kornia.feature", "KeyNet", partial(image, 64, 1), pretrained=False),
    **_of("kornia", "kornia.feature", "HardNet", partial(image, 32, 1), pretrained=False),
    **_of("kornia", "kornia.feature", "SOSNet", partial(image, 32, 1), pretrained=False),
    **_of("kornia", "kornia.feature", "HyNet", partial(image, 32, 1), pretrained=False),
    **_of("kornia", "kornia.feature", "LoFTR",
          lambda: ({"image0": image(64, 1), "image1": image(64, 1)},), pretrained=None),
    **_of("kornia", "kornia.feature", "DeDoDe", partial(image, 64), detector_model="L", descriptor_model="B",
          amp_dtype=torch.float32),
    **_of("kornia", "kornia.feature", "XFeatModel", image),
    **_of("kornia", "kornia.feature", "DISK", image),
    **_of("torchxrayvision", "torchxrayvision.models", "DenseNet", partial(image, 224, 1), weights=None),
    **_of("torchxrayvision", "torchxrayvision.autoencoders", "ResNetAE", partial(image, 224, 1), weights=None),
    **_of("geffnet", "geffnet", "mixnet_s", image),
    **_of("geffnet", "geffnet", "efficientnet_es", image),
    **_of("geffnet", "geffnet", "tf_mobilenetv3_small_075", image),
    **_of("spikingjelly", "spikingjelly.activation_based.model.spiking_resnet", "spiking_resnet18", image,
          spiking_neuron=lambda **settings: Lazy("spikingjelly.activation_based.neuron").IFNode(**settings)),
    **_of("facexlib", "facexlib.parsing.bisenet", "BiSeNet", partial(image, 64), 19),
    **_of("facexlib", "facexlib.parsing.parsenet", "ParseNet", partial(image, 64), in_size=64, out_size=64,
          parsing_ch=19, min_feat_size=32),
    **_of("antialiased_cnns", "antialiased_cnns", "resnet18", image, pretrained=False),
    **_of("antialiased_cnns", "antialiased_cnns", "mobilenet_v2", image, pretrained=False),
    **_of("doctr", "doctr.models.recognition", "crnn_vgg16_bn", _maps_of(32, 64), pretrained=False,
          pretrained_backbone=False),
    **_of("doctr", "doctr.models.detection", "db_mobilenet_v3_large", _maps_of(128, 128), pretrained=False,
          pretrained_backbone=False),
    **_of("doctr", "doctr.models.detection", "fast_tiny", _maps_of(128, 128), pretrained=False,
          pretrained_backbone=False),
    **_of("doctr", "doctr.models.classification", "vit_s", lambda: torch.randn(1, 3, 32, 32), pretrained=False),
    **_of("doctr", "doctr.models.classification", "magc_resnet31", lambda: torch.randn(1, 3, 32, 32), pretrained=False),
    **_of("conformer", "conformer", "ConformerBlock", lambda: torch.randn(1, 32, 64), dim=64, dim_head=16, heads=4),
    **_of("denoising_diffusion", "denoising_diffusion_pytorch", "Unet",
          lambda: (image(32), torch.tensor([3])), dim=16, dim_mults=(1, 2), channels=3),
    "super_image:EDSR": lambda: super_image("Edsr"),
    "super_image:PAN": lambda: super_image("Pan"),
    **_of("diffusers", "diffusers.models", "UNet2DModel", lambda: (image(32), torch.tensor([3])), sample_size=32,
          block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
          up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8),
    **_of("diffusers", "diffusers.models", "AutoencoderKL", partial(image, 32), block_out_channels=(16, 32),
          down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8),
    **_of("diffusers", "diffusers.models", "AutoencoderTiny", partial(image, 32)),
    **_of("mlp_mixer", "mlp_mixer_pytorch", "MLPMixer", image, image_size=64, channels=3, patch_size=16, dim=64,
          depth=2, num_classes=5),
    **_of("easyocr", "easyocr.model.model", "Model", lambda: (torch.randn(1, 1, 32, 64), torch.zeros(1, 5)), 1, 64, 32,
          20, key="CRNN"),
    **_of("effdet", "effdet", "create_model", partial(image, 128), "tf_efficientdet_lite0", pretrained=False,
          pretrained_backbone=False, image_size=(128, 128), key="tf_efficientdet_lite0"),
    **_of("dynamic_network_architectures", "dynamic_network_architectures.architectures.unet", "PlainConvUNet",
          volume, 1, 3, (16, 32, 64), nn.Conv3d, 3, (1, 2, 2), 2, 3, 2, norm_op=nn.BatchNorm3d, norm_op_kwargs={},
          nonlin=nn.LeakyReLU, key="PlainConvUNet BN"),
    **_of("dynamic_network_architectures", "dynamic_network_architectures.architectures.unet", "PlainConvUNet",
          partial(image, 64, 1), 1, 3, (16, 32, 64), nn.Conv2d, 3, (1, 2, 2), 2, 3, 2, norm_op=nn.InstanceNorm2d,
          norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, key="PlainConvUNet IN"),
    **_of("dynamic_network_architectures", "dynamic_network_architectures.architectures.unet", "ResidualEncoderUNet",
          volume, 1, 3, (16, 32, 64), nn.Conv3d, 3, (1, 2, 2), (1, 2, 2), 3, (1, 1), norm_op=nn.BatchNorm3d,
          norm_op_kwargs={}, nonlin=nn.LeakyReLU, key="ResidualEncoderUNet BN"),
    **_of("lightly", "lightly.models", "ResNetGenerator", partial(image, 32), "resnet-18"),
    **_of("open_clip", "open_clip.modified_resnet", "ModifiedResNet", partial(image, 64), (1, 1, 1, 1), 64, 8,
          image_size=64, width=16),
    **_of("open_clip", "open_clip.transformer", "VisionTransformer", partial(image, 64), image_size=64, patch_size=16,
          width=64, layers=2, heads=4, mlp_ratio=2.0, output_dim=32),
    **_of("self_attention_cv", "self_attention_cv", "ResNet50ViT", partial(image, 64), img_dim=64, num_classes=5,
          dim_linear_block=64, dim=32),
    **_of("pytorchvideo", "pytorchvideo.models.x3d", "create_x3d", lambda: torch.randn(1, 3, 4, 64, 64),
          input_clip_length=4, input_crop_size=64, key="x3d"),
    **_of("pytorchvideo", "pytorchvideo.models", "create_slowfast",
          lambda: ([torch.randn(1, 3, 8, 64, 64), torch.randn(1, 3, 32, 64, 64)],),
          head_pool_kernel_sizes=((8, 2, 2), (32, 2, 2)), key="slowfast"),
    **_of("pytorchvideo", "pytorchvideo.models", "create_csn", lambda: torch.randn(1, 3, 4, 64, 64), model_depth=50,
          head_pool_kernel_size=(1, 2, 2), key="csn"),
    **_of("spandrel", "spandrel.architectures.ESRGAN", "ESRGAN", partial(image, 24), num_filters=16, num_blocks=1),
    **_of("spandrel", "spandrel.architectures.NAFNet", "NAFNet", partial(image, 32), width=16, enc_blk_nums=[1, 1],
          dec_blk_nums=[1, 1], middle_blk_num=1),
    **_of("spandrel", "spandrel.architectures.SPAN", "SPAN", partial(image, 24), num_in_ch=3, num_out_ch=3),
    **_of("spandrel", "spandrel.architectures.Compact.__arch.SRVGG", "SRVGGNetCompact", partial(image, 24), num_feat=16,
          num_conv=3),
    **_of("pytorch_toolbelt", "pytorch_toolbelt.modules.encoders", "StackedHGEncoder", partial(image, 128),
          stack_level=1),
}  # fmt: skip


def _after_a_stem(module: str, name: str, key: str, channels: int = 32, **settings: Any) -> Builders:
    """A layer of a package between a convolution and a classifier."""

    def build() -> Network:
        layer = attrgetter(name)(Lazy(module))(**settings)
        stem = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()
        return nn.Sequential(*stem, layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)), image(16)

    return {key: build}


def _yolov5() -> Network:
    folder = Path(importlib.import_module("yolov5").__file__ or "").parent
    return Lazy("yolov5.models.yolo").Model(folder / "models" / "yolov5n.yaml", ch=3, nc=4), image()


def _enformer() -> Network:
    heads = {"human": 7}
    enformer = Lazy("enformer_pytorch").Enformer
    model = enformer.from_hparams(dim=384, depth=1, heads=4, target_length=2, num_downsamples=5, output_heads=heads)
    return model, torch.randn(1, 256, 4).softmax(-1)


def _pair() -> Tensor:
    """Two images of a place."""
    return torch.randn(1, 2, 3, 64, 64)


UNET: dict[str, Any] = {"in_channels": 1, "out_classes": 2, "num_encoding_blocks": 3, "normalization": "batch"}
MORE: Builders = {
    **_of("pytorch_tabnet", "pytorch_tabnet.tab_network", "TabNet", lambda: torch.randn(8, 16), 16, 4, n_d=16, n_a=16,
          n_steps=2, group_attention_matrix=torch.eye(16)),
    **_of("denoiser", "denoiser.demucs", "Demucs", lambda: torch.randn(1, 1, 4000), hidden=8, depth=3),
    **_of("basicsr", "basicsr.archs.rrdbnet_arch", "RRDBNet", partial(image, 24), 3, 3, num_feat=16, num_block=1,
          num_grow_ch=8),
    **_of("basicsr", "basicsr.archs.rcan_arch", "RCAN", partial(image, 24), 3, 3, num_feat=32, num_group=2,
          num_block=2),
    **_of("basicsr", "basicsr.archs.swinir_arch", "SwinIR", partial(image, 16), img_size=16, embed_dim=24,
          depths=(2, 2), num_heads=(2, 2), window_size=4),
    **_of("basicsr", "basicsr.archs.srresnet_arch", "MSRResNet", partial(image, 16), 3, 3, 16, 2),
    **_of("basicsr", "basicsr.archs.edvr_arch", "EDVR", lambda: torch.randn(1, 3, 3, 32, 32), num_feat=16,
          num_extract_block=1, num_reconstruct_block=1, deformable_groups=2, num_frame=3),
    **_of("basicsr", "basicsr.archs.ecbsr_arch", "ECBSR", partial(image, 16), 3, 3, 2, 16, True, "prelu", 2),
    **_of("basicsr", "basicsr.archs.ridnet_arch", "RIDNet", partial(image, 16), 3, 16, 3, num_block=2),
    **_of("basicsr", "basicsr.archs.discriminator_arch", "VGGStyleDiscriminator", partial(image, 128), 3, 16, 128),
    **_of("basicsr", "basicsr.archs.discriminator_arch", "UNetDiscriminatorSN", partial(image, 32), 3, 16),
    **_of("segment_anything", "segment_anything.modeling", "ImageEncoderViT", image, img_size=64, patch_size=16,
          embed_dim=32, depth=2, num_heads=4, out_chans=16, use_rel_pos=True, window_size=2),
    **_of("pytorch3dunet", "pytorch3dunet.unet3d.model", "UNet3D", partial(volume, 16), 1, 3, f_maps=[16, 32],
          layer_order="cbr"),
    **_of("pytorch3dunet", "pytorch3dunet.unet3d.model", "ResidualUNet3D", partial(volume, 16), 1, 3,
          f_maps=[16, 32], layer_order="gcr"),
    **_of("pytorch3dunet", "pytorch3dunet.unet3d.model", "ResidualUNetSE3D", partial(volume, 16), 1, 3,
          f_maps=[16, 32], layer_order="cbe"),
    **_of("perceiver_pytorch", "perceiver_pytorch", "Perceiver", lambda: torch.randn(1, 16, 16, 3), num_freq_bands=4,
          depth=2, max_freq=10.0, num_latents=16, latent_dim=64, num_classes=5),
    **_after_a_stem("bottleneck_transformer_pytorch", "BottleStack", "bottleneck_transformer:BottleStack", 64, dim=32,
                    fmap_size=16, dim_out=64, proj_factor=4, heads=4, dim_head=16),
    **_after_a_stem("lambda_networks", "LambdaLayer", "lambda_networks:LambdaLayer", dim=32, dim_out=32, r=7, dim_k=16,
                    heads=4, dim_u=1),
    **_after_a_stem("halonet_pytorch", "HaloAttention", "halonet:HaloAttention", dim=32, block_size=8, halo_size=4,
                    dim_head=16, heads=4),
    **_of("res_mlp", "res_mlp_pytorch", "ResMLP", partial(image, 32), image_size=32, patch_size=8, dim=64, depth=2,
          num_classes=5),
    **_of("g_mlp", "g_mlp_pytorch", "gMLPVision", partial(image, 32), image_size=32, patch_size=8, num_classes=5,
          dim=64, depth=2),
    **_of("resnest", "resnest.torch", "resnest50", image, pretrained=False),
    **_of("efficientnet_lite", "efficientnet_lite_pytorch", "EfficientNet.from_name", image, "efficientnet-lite0",
          key="lite0"),
    **_of("segmentation_refinement", "segmentation_refinement.models.psp.pspnet", "RefinementModule",
          lambda: (image(), image(64, 1))),
    **_of("unet", "unet", "UNet2D", partial(image, 32, 1), out_channels_first_layer=16, padding=True, **UNET),
    **_of("unet", "unet", "UNet3D", partial(volume, 16), out_channels_first_layer=8, padding=1, residual=True, **UNET),
    **_of("ternausnet", "ternausnet.models", "UNet11", image),
    "yolov5:yolov5n": _yolov5,
    **_of("vocos", "vocos.models", "VocosBackbone", lambda: torch.randn(1, 32, 20), 32, 64, 128, 2),
    **_of("vocos", "vocos.models", "VocosResNetBackbone", lambda: torch.randn(1, 32, 20), 32, 64, 2),
    **_of("deepinv", "deepinv.models", "DnCNN", lambda: (image(32), 0.1), 3, 3, depth=5, nf=16, pretrained=None),
    **_of("deepinv", "deepinv.models", "DRUNet", lambda: (image(32), 0.1), 3, 3, nc=[8, 16, 24, 32], nb=1,
          pretrained=None),
    **_of("deepinv", "deepinv.models", "UNet", lambda: (image(32), 0.1), 3, 3, scales=2),
    **_of("deepinv", "deepinv.models", "Restormer", partial(image, 32), 3, 3, dim=16, num_blocks=[1, 1, 1, 1],
          num_refinement_blocks=1, pretrained=None),
    **_of("deepinv", "deepinv.models", "SwinIR", lambda: (image(16), 0.1), img_size=16, embed_dim=24, depths=(2, 2),
          num_heads=(2, 2), pretrained=None),
    **_of("instanseg", "instanseg.utils.models.InstanSeg_UNet", "InstanSeg_UNet", image, in_channels=3,
          layers=[16, 32, 64], out_channels=[[2, 2, 1]], norm="BATCH", act="relu6"),
    **_of("rfdetr", "rfdetr.models.backbone.projector", "MultiScaleProjector",
          lambda: ([torch.randn(1, 32, 8, 8), torch.randn(1, 32, 8, 8)],), [32, 32], 32, [2.0, 1.0, 0.5]),
    **_of("itransformer", "iTransformer", "iTransformer", lambda: torch.randn(1, 24, 7), num_variates=7,
          lookback_len=24, dim=32, depth=2, heads=4, dim_head=8, pred_length=6, num_tokens_per_variate=1),
    **_of("realesrgan", "realesrgan.archs.srvgg_arch", "SRVGGNetCompact", partial(image, 24), 3, 3, 16, 4),
    **_of("torchgeo", "torchgeo.models", "FCN", partial(image, 32, 4), 4, 5, 16),
    **_of("torchgeo", "torchgeo.models", "FarSeg", image, "resnet18", 5, False),
    **_of("torchgeo", "torchgeo.models", "ChangeStarFarSeg", _pair, "resnet18", 3, False),
    **_of("torchgeo", "torchgeo.models", "FCSiamConc", _pair, encoder_weights=None),
    **_of("torchgeo", "torchgeo.models", "FCSiamDiff", _pair, encoder_weights=None),
    **_of("torchgeo", "torchgeo.models", "ConvLSTM", lambda: torch.randn(1, 3, 3, 16, 16), 3, [8, 16],
          [(3, 3), (3, 3)], 2, batch_first=True),
    "enformer:Enformer": _enformer,
}  # fmt: skip


def _whisper() -> Network:
    whisper = Lazy("whisper.model")
    sizes = whisper.ModelDimensions(20, 16, 64, 4, 2, 50, 12, 64, 4, 2)
    return whisper.Whisper(sizes), (torch.randn(1, 20, 32), torch.randint(0, 50, (1, 8)))


def _bigvgan() -> Network:
    settings = Lazy("bigvgan.env").AttrDict(
        resblock="1", upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4], upsample_initial_channel=32,
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]], activation="snakebeta", snake_logscale=True,
        num_mels=20, use_bias_at_final=True, use_tanh_at_final=True, use_cuda_kernel=False,
    )  # fmt: skip
    return Lazy("bigvgan.bigvgan").BigVGAN(settings), torch.randn(1, 20, 16)


def _x_transformer(**settings: Any) -> Network:
    package = Lazy("x_transformers")
    layers = package.Encoder(dim=64, depth=2, heads=4, **settings)
    return package.ViTransformerWrapper(image_size=32, patch_size=8, num_classes=5, attn_layers=layers), image(32)


def torchseg(name: str) -> Network:
    architecture, _, encoder = name.partition(" ")
    return getattr(Lazy("torchseg"), architecture)(encoder, encoder_weights=None, classes=3), image(64)


TCN: dict[str, Any] = {"num_inputs": 8, "num_channels": [16, 32, 32], "kernel_size": 3}
LATEST: Builders = {
    **_of("compressai", "compressai.models", "FactorizedPrior", image, 32, 48),
    **_of("compressai", "compressai.models", "ScaleHyperprior", image, 32, 48),
    **_of("compressai", "compressai.models", "MeanScaleHyperprior", image, 32, 48),
    **_of("compressai", "compressai.models", "JointAutoregressiveHierarchicalPriors", image, 32, 48),
    **_of("compressai", "compressai.models", "Cheng2020Attention", image, 32),
    **_of("pytorch_tcn", "pytorch_tcn", "TCN", lambda: torch.randn(1, 8, 50), key="TCN batch", use_norm="batch_norm",
          **TCN),
    **_of("pytorch_tcn", "pytorch_tcn", "TCN", lambda: torch.randn(1, 8, 50), key="TCN weight", use_norm="weight_norm",
          use_skip_connections=True, causal=False, **TCN),
    **_of("lpips", "lpips", "LPIPS", lambda: (image(), image()), net="squeeze", pretrained=False, pnet_rand=True),
    **_of("torch_uncertainty", "torch_uncertainty.models.classification", "packed_resnet", partial(image, 32), 3, 10,
          arch=18, num_estimators=2, alpha=2, gamma=1),
    **_of("torch_uncertainty", "torch_uncertainty.models.classification", "batched_resnet", partial(image, 32), 3, 10,
          arch=18, num_estimators=2),
    "x_transformers:ViT": _x_transformer,
    "x_transformers:ViT gated": partial(_x_transformer, ff_glu=True, use_rmsnorm=True),
    "x_transformers:ViT rotary": partial(_x_transformer, rotary_pos_emb=True, attn_kv_heads=2),
    "whisper:Whisper": _whisper,
    "bigvgan:BigVGAN": _bigvgan,
    "torchseg:Unet resnet18": partial(torchseg, "Unet resnet18"),
    "torchseg:MAnet resnet18": partial(torchseg, "MAnet resnet18"),
    "torchseg:UnetPlusPlus mobilenetv3_small_100": partial(torchseg, "UnetPlusPlus mobilenetv3_small_100"),
    **_of("fastai", "fastai.vision.models.xresnet", "xresnet18", image, pretrained=False, n_out=5),
}  # fmt: skip

NETWORKS: Builders = {
    **ULTRALYTICS, **SMP, **TRANSFORMERS, **MONAI, **AUDIO, **BRAINDECODE, **TSAI, **PYTORCHCV, **TORCHREID,
    **PRETRAINED, **TIMM, **TORCHVISION, **VIT_PYTORCH, **OTHERS, **MORE, **LATEST,
}  # fmt: skip
