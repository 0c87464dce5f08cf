"""Small tokenizers of the kinds that encoders come with, trained for the tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from clipette.models.tokenizers import HFTokenizer, OpenClipTokenizer

CORPUS = [
    "a photo of two dogs running in the park",
    "Ein naïves Café — 12 Hunde!",
    "犬が走る",
    "it's the dog's day",
] * 5


def word_piece() -> Library:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    library.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return library


def sentence_piece() -> Library:
    library = Library(models.Unigram())
    library.normalizer = normalizers.NFKC()
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    library.train_from_iterator(CORPUS, trainer)
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return library


def hugging_face(library: Library, names: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=library, model_max_length=24, **names)


BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
T5 = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}


def siglip(folder: Path, **options: Any) -> Any:
    """transformers' SigLIP tokenizer over a model that SentencePiece itself trained, with T5's ids."""
    from transformers import SiglipTokenizer

    model = io.BytesIO()
    chosen = {"vocab_size": 100, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        **chosen,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"))


def families(folder: Path) -> dict[str, HFTokenizer | OpenClipTokenizer]:
    """One tokenizer of each kind."""
    return {
        "CLIP's byte pairs": OpenClipTokenizer.clip(context_length=32),
        "word pieces": HFTokenizer(hugging_face(word_piece(), BERT), context_length=16),
        "sentence pieces": HFTokenizer(hugging_face(sentence_piece(), T5), context_length=16, lower=True),
        "SigLIP's sentence pieces": HFTokenizer(siglip(folder), context_length=16, padding="max_length", mask=False),
    }
