"""Small Hugging Face text encoders, written to a folder as their authors would."""

from __future__ import annotations

from pathlib import Path

import torch

CORPUS = ["a photo of a red dog running", "something green and blue", "two white cats, one picture of kind number"]


def write_bert(folder: Path, *, layers: int = 2, width: int = 32, seed: int = 0) -> Path:
    """A random BERT with a WordPiece tokenizer of its own."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    inner = BertWordPieceTokenizer(lowercase=True)
    inner.train_from_iterator(CORPUS * 3, vocab_size=150, show_progress=False)
    folder.mkdir(parents=True)
    inner.save_model(str(folder))
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=inner.get_vocab_size(),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder
