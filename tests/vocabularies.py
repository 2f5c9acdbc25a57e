"""Small tokenizers of every kind that models come with, trained here."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.tiny import train_tokenizer

WORDS = ["the quick brown fox jumps over the lazy dog, and the cat's hat isn't on the mat."] * 4
SPECIALS = ["<unk>", "<s>", "</s>"]
BLANK = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def llama() -> PreTrainedTokenizerFast:
    """Llama 2's form: blanks by a normalizer, bytes for what has no token, a blank stripped."""
    base = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIALS, *BYTES], show_progress=False, max_token_length=6
    )
    words = [word for line in WORDS for word in line.split()]
    base.train_from_iterator(words, trainer)
    content = Tokenizer.from_str(_with_plain_bytes(base))
    content.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _framed(content)


def metaspace_bpe() -> PreTrainedTokenizerFast:
    """BPE whose blanks are made and taken away by Metaspace."""
    base = Tokenizer(models.BPE(unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIALS, show_progress=False)
    base.train_from_iterator(WORDS, trainer)
    return _framed(base)


def unigram() -> PreTrainedTokenizerFast:
    """A Unigram vocabulary, as T5 and XLM-R have it."""
    base = Tokenizer(models.Unigram())
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    base.train_from_iterator(WORDS, trainer)
    return _framed(base)


def wordpiece(**options: object) -> PreTrainedTokenizerFast:
    """BERT's form: words, and pieces behind `##`."""
    base = Tokenizer(models.WordPiece(unk_token="<unk>"))
    base.normalizer = normalizers.BertNormalizer()
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base.decoder = decoders.WordPiece(cleanup=bool(options.pop("cleanup", True)))
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=SPECIALS, show_progress=False
    )
    base.train_from_iterator(WORDS, trainer)
    return _framed(base, **options)


def cleaned_wordpiece() -> PreTrainedTokenizerFast:
    """WordPiece whose blanks before punctuation transformers takes out at the end."""
    return wordpiece(cleanup=False, clean_up_tokenization_spaces=True)


def char_bpe() -> PreTrainedTokenizerFast:
    """The first GPT's form: words end in `</w>`."""
    base = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=SPECIALS, end_of_word_suffix="</w>", show_progress=False
    )
    base.train_from_iterator(WORDS, trainer)
    return _framed(base)


def nested_bytes() -> PreTrainedTokenizerFast:
    """Byte-level behind another decoder, so that no table of bytes can stand for it."""
    whole = train_tokenizer().backend_tokenizer
    whole.decoder = decoders.Sequence([decoders.Replace("\u0120\u0120", "\u0120"), whole.decoder])
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<|endoftext|>")


def plain_words() -> PreTrainedTokenizerFast:
    """Whole words and no decoder: tokens are joined by blanks."""
    base = Tokenizer(models.WordLevel(unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.train_from_iterator(WORDS, trainers.WordLevelTrainer(special_tokens=SPECIALS))
    return _framed(base)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": train_tokenizer,
    "llama": llama,
    "metaspace": metaspace_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "cleaned-wordpiece": cleaned_wordpiece,
    "char-bpe": char_bpe,
    "nested-bytes": nested_bytes,
    "words": plain_words,
}
"""Makers by kind."""


def _framed(base: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    """With `<s>` before every text."""
    base.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", base.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=base, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )


def _with_plain_bytes(base: Tokenizer) -> str:
    """The tokenizer's content, its byte tokens being ordinary ones."""
    import json

    content = json.loads(base.to_str())
    content["added_tokens"] = content["added_tokens"][: len(SPECIALS)]
    return json.dumps(content)
