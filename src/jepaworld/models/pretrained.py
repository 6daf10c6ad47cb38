"""A frozen pretrained backbone as encoder: its weights stay where they come from.

Shapes: N images, C H W image, R class and register tokens, L patches, E backbone width, D latent.
"""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepaworld.config.components import component
from jepaworld.config.fields import NonEmpty, PositiveInt, Section, setting
from jepaworld.errors import CheckpointError, ConfigError
from jepaworld.models.encoders import Normalization
from jepaworld.utils.outside import failures, import_module

if TYPE_CHECKING:
    from jepaworld.config import Config

BACKBONE = "backbone."
"""Before the names of the backbone's weights in the encoder."""
PROCESSOR = "preprocessor_config.json"
"""What images are prepared by, beside the backbone's weights; that of a video model has a word before this."""


class PretrainedSettings(Section):
    """A frozen backbone of the package transformers; needs the extra pretrained."""

    name: NonEmpty = setting(
        "facebook/dinov2-small", "Model on the Hugging Face hub, or a folder that save_pretrained wrote."
    )
    revision: NonEmpty | None = setting(
        None, "Commit, tag or branch of a model on the hub; a commit alone stays what it is. null: its main branch."
    )
    pool: Literal["cls", "mean", "patches"] = setting(
        "mean", "What becomes the embedding: the class token, the mean of all patches, or each patch as a token."
    )
    image_size: PositiveInt | None = setting(
        None, "Side that frames are resized to; null takes that of the backbone's image processor.", unit="pixels"
    )
    head: bool = setting(True, "A linear layer to latent_dim; without it the backbone's width must be latent_dim.")

    def contradictions(self, config: Config, prefix: str) -> Iterator[str]:  # noqa: ARG002 (as of all settings)
        """What cannot stand together."""
        if config.input_channels != 3:
            yield f"input_channels is {config.input_channels}: encoder_type pretrained needs 3."
        if config.image_normalization != "unit":
            yield (
                f"image_normalization is {config.image_normalization}: encoder_type pretrained brings its own, it must "
                "be unit."
            )


@component("encoder", "pretrained", label="Pretrained")
class PretrainedEncoder(nn.Module):
    """A vision Transformer whose weights never change, and a linear layer that is trained.

    Checkpoints hold the linear layer and a checksum of the backbone, which is read from where it is whenever a model is
    made; a target encoder shares it. The weights are read as safetensors, and no code of the model's repository is run.

    V-JEPA 2 (arXiv 2506.09985) is given a frame as a video of it alone, which it repeats.

    Args:
        latent_dim: D.
        settings: As in `PretrainedSettings`.

    Raises:
        ConfigError: transformers is not installed, the backbone is neither on disk nor can be fetched, is no vision
            Transformer, or its width is not D where there is no head.

    Example:
        ```
        encoder = PretrainedEncoder(384, PretrainedSettings(pool="patches", image_size=196, head=False))
        encoder(torch.rand(8, 3, 224, 224))  # (8, 196, 384)
        ```
    """

    Settings = PretrainedSettings
    checksum: Tensor

    def __init__(self, latent_dim: int, settings: PretrainedSettings) -> None:
        super().__init__()
        self.name, self.pool = settings.name, settings.pool
        self.backbone, processor = _load(settings)
        self.size = settings.image_size or _own_size(processor, self.backbone.config)
        self.normalization = Normalization(*(list(processor[key]) for key in ("image_mean", "image_std")))
        self.register_buffer("checksum", torch.tensor(_checksum(self.backbone)))
        prefix = "encoder_params.pretrained."
        with failures(f"{prefix}name is {self.name}: encoding an image of {self.size} pixels"), torch.no_grad():
            tokens = self._tokens(torch.zeros(1, 3, self.size, self.size))
            self.patches = (self.size // int(self.backbone.config.patch_size)) ** 2
        if self.pool == "cls" and tokens.shape[1] == self.patches:
            raise ConfigError(f"{prefix}pool is cls but {self.name} has no class token: use mean or patches.")
        width = tokens.shape[2]
        if not settings.head and width != latent_dim:
            raise ConfigError(f"latent_dim is {latent_dim}: without {prefix}head it must be {width} for {self.name}.")
        self.head = nn.Linear(width, latent_dim) if settings.head else nn.Identity()
        self.register_state_dict_post_hook(_without_backbone)
        self.register_load_state_dict_pre_hook(_with_own_backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images in [0, 1] (N, 3, H, W) as (N, D), or as tokens (N, L, D) where the patches are not pooled."""
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        tokens = self._tokens(images)
        patches = tokens[:, tokens.shape[1] - self.patches :]  # class and register tokens come first
        return self.head({"cls": tokens[:, 0], "mean": patches.mean(dim=1), "patches": patches}[self.pool])

    def train(self, mode: bool = True) -> Self:
        """Like `nn.Module.train`, but the backbone always stays in eval mode: its dropout is none of this training."""
        super().train(mode)
        self.backbone.eval()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy with a head of its own and the same backbone."""
        memo[id(self.backbone)] = self.backbone
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _tokens(self, images: Tensor) -> Tensor:
        """The backbone's normalised output (N, R + L, E)."""
        images = self.normalization(images)
        if self.backbone.main_input_name == "pixel_values_videos":
            return self.backbone(images.unsqueeze(1), skip_predictor=True).last_hidden_state
        return self.backbone(images).last_hidden_state


def _load(settings: PretrainedSettings) -> tuple[Any, dict[str, Any]]:
    """The frozen backbone, and what its image processor does.

    Raises:
        ConfigError: as `PretrainedEncoder`.
    """
    transformers = import_module("transformers", "encoder_type is pretrained")
    hub = import_module("huggingface_hub", "encoder_type is pretrained")
    what = f"encoder_params.pretrained.name is {settings.name}"
    what += f" at revision {settings.revision}" if settings.revision else ""
    options = {"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}
    # Weights that are not in the file are drawn: the same every time, and not from the numbers of this training.
    with torch.random.fork_rng(devices=[]), _quiet(transformers.utils.logging):
        torch.manual_seed(0)
        try:
            folder = Path(settings.name)
            if not folder.is_dir():
                patterns = ["*.json", "*.safetensors"]
                folder = Path(hub.snapshot_download(settings.name, revision=settings.revision, allow_patterns=patterns))
            processor = json.loads(next(folder.glob("*preprocessor_config.json"), folder / PROCESSOR).read_text())
            backbone, found = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **options)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ConfigError(
                f"{what}: neither on this disk nor to be fetched ({reason}). Fetch it where there is a network, or "
                "name its folder."
            ) from error
    if missing := [name for name in found["missing_keys"] if not name.startswith("pooler.")]:
        raise ConfigError(f"{what}: its file lacks {len(missing)} weights, {missing[0]} among them. Name another.")
    return backbone.requires_grad_(False).eval(), processor


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep transformers' progress bars and remarks from between ours."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _own_size(processor: dict[str, Any], config: Any) -> int:
    """Side of the images that the backbone's image processor makes, or that the backbone was made for."""
    for key in ("crop_size", "size"):
        side = processor.get(key)
        side = side.get("height") if isinstance(side, dict) else side
        if side is not None:
            return int(side)
    return int(config.image_size)


def _checksum(backbone: nn.Module) -> int:
    """A checksum of all weights: CRC-32 of their bytes, in the order of their names."""
    found = 0
    for _, weights in sorted(backbone.state_dict().items()):
        found = zlib.crc32(weights.contiguous().numpy().tobytes(), found)
    return found


def _without_backbone(_encoder: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix + BACKBONE)]:
        del state[name]


def _with_own_backbone(encoder: PretrainedEncoder, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let the backbone load its own weights, if they are those that the state was saved with."""
    if int(state.get(f"{prefix}checksum", encoder.checksum)) != int(encoder.checksum):
        raise CheckpointError(
            f"encoder_params.pretrained.name is {encoder.name}: has other weights than those of this training. Restore "
            "them, or train anew."
        )
    state.update({prefix + BACKBONE + name: weights for name, weights in encoder.backbone.state_dict().items()})
