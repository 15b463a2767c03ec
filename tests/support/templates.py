"""Chat templates of five families, as their models have them, and one that drops thinking."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{%- for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim"
    " + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{%- else %}{{ m.content + '</s>' }}{%- endif %}{%- endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{%- for m in messages %}"
    "{%- set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}"
)
ZEPHYR = (
    "{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '</s>' + '\\n' }}"
    "{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{%- endif %}{%- endfor %}"
)
QWEN3 = (  # thinking of turns before the last user's message is left out
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set said = m.content %}"
    "{%- if m.role == 'assistant' and loop.index0 < ns.last and '</think>' in said %}"
    "{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
FAMILIES = {  # template, EOS, other special tokens
    "chatml": (CHATML, "<|im_end|>", ["<|im_start|>"]),
    "llama3": (
        LLAMA3,
        "<|eot_id|>",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
    ),
    "mistral": (MISTRAL, "</s>", ["<s>", "[INST]", "[/INST]"]),
    "gemma": (GEMMA, "<end_of_turn>", ["<bos>", "<start_of_turn>"]),
    "zephyr": (ZEPHYR, "</s>", ["<s>"]),
}
_CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
_MERGES = [("h", "i"), ("hi", "g"), ("\n", "\n"), ("l", "o"), ("lo", "w"), ("u", "s"), (">", "\n")]


def family_tokenizer(family: str, more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with a family's template and special tokens, and a few merges of characters."""
    template, eos, others = FAMILIES[family]
    special = [eos, *others, *more]
    tokens = [*special, *_CHARACTERS, *(a + b for a, b in _MERGES)]
    inner = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(tokens)}, merges=_MERGES))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+|\s+|[^a-z\s]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(special)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=eos, chat_template=template, extra_special_tokens=special
    )
    return made
