"""Small random towers of every family, in float64, and what their hooks look like."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer
from open_clip.transformer import VisionTransformer as OpenClipViT
from tests.models.encoders import write_bert
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from clipette.data.preprocess import Preprocess
from clipette.models.core import Blueprint, ImageTower, TextTower
from clipette.models.open_clip_models import OpenClipText
from clipette.models.text import HFTextTrunk, SmallTextTrunk
from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer
from clipette.models.transformers_models import PooledImage, PooledText
from clipette.runtime.words import WordTokenizer

WIDTH, DIM, SIZE, LAYERS = 16, 6, 32, 3
HF = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
PLAIN = Preprocess((SIZE, SIZE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NOTHING = Blueprint("none", {})
WORDS = ["<pad>", "<s>", "a", "<unk>", "</s>", "photo", "of", "dog", "two", "cats", "running", ".", "X"]


def shaken(tower: Any, seed: int = 0) -> Any:
    """No zero bias, no norm of one: every parameter takes part. In eval mode and float64."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return tower.eval().double()


def image_tower(trunk: nn.Module, width: int = DIM, head: nn.Module | None = None) -> ImageTower:
    tower: ImageTower = shaken(
        ImageTower(trunk, head or nn.Identity(), preprocess=PLAIN, width=width, blueprint=NOTHING)
    )
    return tower


def timm_vit(**options: Any) -> TimmViT:
    return TimmViT(
        **{
            "img_size": SIZE,
            "patch_size": 16,
            "embed_dim": WIDTH,
            "depth": LAYERS,
            "num_heads": 2,
            "num_classes": 0,
            **options,
        }
    )


def open_clip_vit(**options: Any) -> OpenClipViT:
    return OpenClipViT(
        image_size=SIZE, patch_size=16, width=WIDTH, layers=LAYERS, heads=2, mlp_ratio=2.0, output_dim=DIM, **options
    )


def wrapped_timm() -> ImageTower:
    wrapper = TimmModel("test_vit", DIM, image_size=160, pool="avg")
    wrapper.trunk = timm_vit(global_pool="avg", reg_tokens=1)
    wrapper.head = nn.Linear(WIDTH, DIM)
    return image_tower(wrapper)


def clip_image() -> ImageTower:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    model = CLIPVisionModel(CLIPVisionConfig(**HF, image_size=SIZE, patch_size=16))
    return image_tower(PooledImage(model, None), head=nn.Linear(WIDTH, DIM, bias=False))


def siglip_image() -> ImageTower:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(SiglipVisionConfig(**HF, image_size=SIZE, patch_size=16))
    return image_tower(PooledImage(model, None), WIDTH)


def under_a_head() -> ImageTower:
    return image_tower(image_tower(open_clip_vit(no_ln_pre=True)), 4, nn.Linear(DIM, 4))


IMAGES: dict[str, Callable[[], ImageTower]] = {
    "timm class token": lambda: image_tower(timm_vit(), WIDTH),
    "timm average": lambda: image_tower(timm_vit(global_pool="avg"), WIDTH),
    "timm average, no class token": lambda: image_tower(timm_vit(global_pool="avg", class_token=False), WIDTH),
    "timm pre-norm, layer scale": lambda: image_tower(timm_vit(pre_norm=True, init_values=0.5), WIDTH),
    "timm registers": lambda: image_tower(timm_vit(reg_tokens=2, global_pool="avg", no_embed_class=True), WIDTH),
    "timm attention pool": lambda: image_tower(timm_vit(global_pool="map", class_token=False), WIDTH),
    "timm any size": lambda: image_tower(timm_vit(dynamic_img_size=True), WIDTH),
    "open_clip class token": lambda: image_tower(open_clip_vit()),
    "open_clip average": lambda: image_tower(open_clip_vit(pool_type="avg", final_ln_after_pool=True)),
    "open_clip attention pool": lambda: image_tower(
        open_clip_vit(attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=2)
    ),
    "open_clip custom blocks": lambda: image_tower(open_clip_vit(qk_norm=True)),
    "open_clip around timm": wrapped_timm,
    "open_clip under a head": under_a_head,
    "transformers clip": clip_image,
    "transformers siglip": siglip_image,
}


def text_tower(trunk: nn.Module, tokenizer: Any, head: nn.Module | None = None, width: int = DIM) -> TextTower:
    tower: TextTower = shaken(
        TextTower(trunk, head or nn.Identity(), tokenizer=tokenizer, width=width, blueprint=NOTHING)
    )
    return tower


def words_tokenizer(**options: Any) -> HFTokenizer:
    """Thirteen words; the end token (4) is not the largest id."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 4)])
    if options.pop("no_start", False):  # as SigLIP's
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 4)])
    if options.pop("no_end", False):
        inner.post_processor = None
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    side = options.pop("padding_side", "right")
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, padding_side=side, **special)
    return HFTokenizer(fast, **{"context_length": 20, **options})


def transformer(vocabulary: int = 49408, length: int = 20, **options: Any) -> TextTransformer:
    return TextTransformer(
        context_length=length, vocab_size=vocabulary, width=WIDTH, heads=2, layers=LAYERS, output_dim=DIM, **options
    )


def open_clip_text(**options: Any) -> TextTower:
    return text_tower(OpenClipText(transformer(**options)), OpenClipTokenizer.clip(context_length=20))


def open_clip_last() -> TextTower:
    """As open_clip's SigLIP: no causal mask, pooled at the last place, its end token not the largest."""
    tokenizer = words_tokenizer(no_start=True, padding="max_length", mask=False)
    return text_tower(OpenClipText(transformer(len(WORDS), no_causal_mask=True, pool_type="last")), tokenizer)


def small_words() -> TextTower:
    tokenizer = WordTokenizer.train(["a photo of two cats running .", "a dog ."], size=300, context_length=40)
    sizes = {"context_length": 40, "width": WIDTH, "layers": LAYERS, "heads": 2, "eos_id": 2, "pad_id": 0}
    trunk = SmallTextTrunk(vocabulary=tokenizer.vocabulary_size, **sizes)
    return text_tower(trunk, tokenizer, nn.Linear(WIDTH, DIM))


def clip_text(eos: int = 4) -> TextTower:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(**HF, vocab_size=len(WORDS), max_position_embeddings=20, eos_token_id=eos, bos_token_id=1)
    return text_tower(
        PooledText(CLIPTextModel(config), first_token=False), words_tokenizer(), nn.Linear(WIDTH, DIM, bias=False)
    )


def siglip_text() -> TextTower:
    from transformers import SiglipTextConfig, SiglipTextModel

    config = SiglipTextConfig(**HF, vocab_size=len(WORDS), max_position_embeddings=20, projection_size=DIM)
    tokenizer = words_tokenizer(no_start=True, padding="max_length", mask=False)
    return text_tower(PooledText(SiglipTextModel(config), first_token=False), tokenizer)


def align_text() -> TextTower:
    from transformers import AlignTextConfig, AlignTextModel

    config = AlignTextConfig(**HF, vocab_size=len(WORDS), max_position_embeddings=64)
    model = AlignTextModel(config, add_pooling_layer=False)
    return text_tower(PooledText(model, first_token=True), words_tokenizer(), nn.Linear(WIDTH, DIM))


def bert_text(pool: str = "mean") -> TextTower:
    from transformers import AutoModel

    with tempfile.TemporaryDirectory() as folder:
        path = write_bert(Path(folder) / "bert", width=WIDTH)
        encoder = AutoModel.from_pretrained(path)
        tokenizer = HFTokenizer.from_pretrained(path, context_length=40)
    encoder.pooler = None
    return text_tower(HFTextTrunk(encoder, pool), tokenizer, nn.Linear(WIDTH, DIM))


def open_clip_bert() -> TextTower:
    from transformers import BertConfig

    with tempfile.TemporaryDirectory() as folder:
        path = write_bert(Path(folder) / "bert", width=WIDTH)
        tokenizer = OpenClipTokenizer.from_hf(path, context_length=40)
        config = BertConfig.from_pretrained(path)
    encoder = HFTextEncoder("bert", DIM, config, pooler_type="mean_pooler", proj_type="linear", pretrained=False)
    return text_tower(OpenClipText(encoder), tokenizer)


def text_under_a_head() -> TextTower:
    inner = open_clip_text()
    return text_tower(inner, inner.tokenizer, nn.Linear(DIM, 4), 4)


TEXTS: dict[str, Callable[[], TextTower]] = {
    "open_clip": open_clip_text,
    "open_clip end token": lambda: open_clip_text(pool_type="eos", eos_id=49407),
    "open_clip not causal": lambda: open_clip_text(no_causal_mask=True),
    "open_clip class token": lambda: open_clip_text(embed_cls=True, pad_id=0),
    "open_clip last": open_clip_last,
    "open_clip under a head": text_under_a_head,
    "small words": small_words,
    "transformers clip": clip_text,
    "transformers siglip": siglip_text,
}
# Learned tokens at their input only.
ENCODERS: dict[str, Callable[[], TextTower]] = {
    "transformers align": align_text,
    "bert mean": bert_text,
    "bert first": lambda: bert_text("cls"),
    "open_clip bert": open_clip_bert,
}


def hooks_of(tower: nn.Module) -> int:
    """How many hooks hang on a module and all within it."""
    return sum(len(inner._forward_hooks) + len(inner._forward_pre_hooks) for inner in tower.modules())
