"""open_clip's plain CLIP (two transformers with linear projections) as transformers' ``CLIPModel``."""

from __future__ import annotations

from typing import Any

from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from clipette.errors import UnsupportedError
from clipette.export.tokens import bpe_library
from clipette.models.core import DualEncoder, ImageTower, TextTower
from clipette.models.open_clip_models import OpenClipText
from clipette.models.tokenizers import OpenClipTokenizer

State = dict[str, Tensor]
ACTIVATIONS: dict[str, str] = {"GELU": "gelu", "QuickGELU": "quick_gelu"}


def clip_model(model: DualEncoder, image: ImageTower, text: TextTower) -> Any:
    """A ``CLIPModel`` with the towers' weights. Raises ``UnsupportedError`` for what it has no place for."""
    from transformers import CLIPConfig, CLIPModel

    visual, language = image.trunk, text.trunk.model if isinstance(text.trunk, OpenClipText) else text.trunk
    if not isinstance(visual, VisionTransformer) or not isinstance(language, TextTransformer):
        raise UnsupportedError(
            f"transformers' CLIP has two plain transformers, not a {type(visual).__name__} and a "
            f"{type(language).__name__}: it cannot be written for transformers"
        )
    if model.logit_bias is not None:
        raise UnsupportedError("the logits have a bias, which transformers' CLIP has not")
    _check_image(visual)
    ends = _check_text(language, text.tokenizer)
    config = CLIPConfig(
        vision_config={
            **_sizes(visual.transformer),
            "image_size": int(visual.image_size[0]),
            "patch_size": int(visual.patch_size[0]),
        },
        text_config={
            **_sizes(language.transformer),
            "vocab_size": language.vocab_size,
            "max_position_embeddings": language.context_length,
            **ends,
        },
        projection_dim=model.dim,
    )
    whole: Any = CLIPModel(config)
    state = {
        **{f"vision_model.{name}": value for name, value in _vision_state(visual).items()},
        **{f"text_model.{name}": value for name, value in _text_state(language).items()},
        "visual_projection.weight": visual.proj.T,
        "text_projection.weight": _projection(language),
        "logit_scale": model.logit_scale.detach(),
    }
    expected = {name for name in whole.state_dict() if not name.endswith("position_ids")}
    if differ := sorted(expected ^ set(state)):
        raise UnsupportedError(f"transformers' CLIP and this model differ in '{differ[0]}'")
    whole.load_state_dict(state, strict=False)
    return whole.eval()


def _check_image(visual: Any) -> None:
    plain = (
        visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and isinstance(visual.ln_pre, nn.LayerNorm)
        and visual.proj is not None
        and visual.conv1.bias is None
        and visual.image_size[0] == visual.image_size[1]
        and visual.patch_size[0] == visual.patch_size[1]
    )
    if not plain:
        raise UnsupportedError("the image tower pools, norms or cuts patches otherwise than transformers' CLIP")


def _check_text(language: Any, tokenizer: object) -> dict[str, int]:
    """The ids of start, end and padding."""
    if not isinstance(tokenizer, OpenClipTokenizer) or tokenizer.family != "clip":
        raise UnsupportedError("transformers' CLIP is written with CLIP's own tokenizer, and this model has another")
    plain = (
        language.cls_emb is None
        and language.attn_mask is not None
        and language.text_projection is not None
        and getattr(language.text_projection, "bias", None) is None
        and (language.pool_type == "argmax" or (language.pool_type, language.eos_id) == ("eos", tokenizer.eos_id))
    )
    if not plain:
        raise UnsupportedError("the text tower masks, pools or projects otherwise than transformers' CLIP")
    end = int(tokenizer.inner.eot_token_id)
    return {"bos_token_id": int(tokenizer.inner.sot_token_id), "eos_token_id": end, "pad_token_id": end}


def _sizes(transformer: Any) -> dict[str, Any]:
    """transformers' names for the sizes of a stack. Raises ``UnsupportedError`` for layers of another kind."""
    block = transformer.resblocks[0]
    known = isinstance(block, ResidualAttentionBlock) and type(block.attn) is nn.MultiheadAttention
    activation = ACTIVATIONS.get(type(block.mlp.gelu).__name__) if known else None
    if not known or activation is None or not isinstance(block.ls_1, nn.Identity):
        raise UnsupportedError("the layers have parts (scales, other attention) that transformers' CLIP has not")
    return {
        "hidden_size": transformer.width,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.c_fc.out_features,
        "hidden_act": activation,
        "layer_norm_eps": block.ln_1.eps,
    }


def _vision_state(visual: Any) -> State:
    return {
        "embeddings.patch_embedding.weight": visual.conv1.weight,
        "embeddings.class_embedding": visual.class_embedding,
        "embeddings.position_embedding.weight": visual.positional_embedding,
        **_norm("pre_layrnorm", visual.ln_pre),
        **_layers(visual.transformer),
        **_norm("post_layernorm", visual.ln_post),
    }


def _text_state(language: Any) -> State:
    return {
        "embeddings.token_embedding.weight": language.token_embedding.weight,
        "embeddings.position_embedding.weight": language.positional_embedding,
        **_layers(language.transformer),
        **_norm("final_layer_norm", language.ln_final),
    }


def _projection(language: Any) -> Tensor:
    projection = language.text_projection
    out: Tensor = projection.weight if isinstance(projection, nn.Linear) else projection.T
    return out


def _norm(name: str, norm: Any) -> State:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _layers(transformer: Any) -> State:
    state: State = {}
    for place, block in enumerate(transformer.resblocks):
        at = f"encoder.layers.{place}"
        weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
        for part, weight, bias in zip("qkv", weights, biases, strict=True):
            state |= {f"{at}.self_attn.{part}_proj.weight": weight, f"{at}.self_attn.{part}_proj.bias": bias}
        maps = {"self_attn.out_proj": block.attn.out_proj, "mlp.fc1": block.mlp.c_fc, "mlp.fc2": block.mlp.c_proj}
        for name, linear in maps.items():
            state |= {f"{at}.{name}.weight": linear.weight, f"{at}.{name}.bias": linear.bias}
        state |= _norm(f"{at}.layer_norm1", block.ln_1) | _norm(f"{at}.layer_norm2", block.ln_2)
    return state


def clip_tokenizer(tokenizer: OpenClipTokenizer) -> Any:
    """CLIP's byte pairs as a tokenizer of transformers: open_clip's but for what ftfy mends and HTML's entities."""
    from tokenizers import Regex, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast
    if tokenizer.options.get("clean", "lower") != "lower":
        raise UnsupportedError(
            f"texts are cleaned by '{tokenizer.options['clean']}', which transformers' CLIP does not"
        )
    inner: Any = tokenizer.inner
    library = bpe_library(inner)
    space = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    library.normalizer = space
    names = {number: inner.decoder[number] for number in (inner.sot_token_id, inner.eot_token_id)}
    start, end = names[inner.sot_token_id], names[inner.eot_token_id]
    library.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, inner.sot_token_id), (end, inner.eot_token_id)]
    )
    return make(
        tokenizer_object=library,
        model_max_length=tokenizer.context_length,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        # Without it transformers 4 also gives token types, which CLIPModel does not take.
        model_input_names=["input_ids", "attention_mask"],
    )
