"""Small tokenizers made in memory, one per habit that real ones have."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]


def character_tokenizer(
    *, bos: bool = True, appends_eos: bool = False, space_first: bool = False, chat: bool = False
) -> PreTrainedTokenizerFast:
    """One token per printable character; BOS in front, EOS behind, or a space first if asked."""
    letters = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    vocabulary = {token: i for i, token in enumerate(_SPECIAL + letters)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.add_special_tokens(_SPECIAL)
    if space_first:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        inner.decoder = decoders.Fuse()
    template = f"{'<s> ' if bos else ''}$A{' </s>' if appends_eos else ''}"
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT if chat else None,
    )
