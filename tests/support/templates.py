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


TOOL_TEMPLATES = {  # with schemas of tools, calls and results, as models of each format have them
    "hermes": (
        "{%- if tools %}{{ '<|im_start|>system\\n<tools>\\n' }}{%- for t in tools %}"
        "{{ t | tojson }}{{ '\\n' }}{%- endfor %}{{ '</tools> Write <tool_call>.<|im_end|>\\n' }}"
        "{%- endif %}{%- for m in messages %}{%- if m.role == 'tool' %}"
        "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
        "{{ '<|im_start|>user' }}{%- endif %}"
        "{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
        "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}"
        "{%- endif %}{%- else %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "llama3": (
        "{{ '<|begin_of_text|>' }}{%- if tools %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
        "{%- for t in tools %}{{ t | tojson }}{%- endfor %}{{ '<|eot_id|>' }}{%- endif %}"
        "{%- for m in messages %}{%- if m.role == 'tool' or m.role == 'ipython' %}"
        "{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}"
        "{%- if m.content is mapping or m.content is iterable %}{{ m.content | tojson }}"
        "{%- else %}{{ m.content }}{%- endif %}{{ '<|eot_id|>' }}{%- else %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim"
        " + '<|eot_id|>' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
    ),
    "mistral": (  # it counts turns without calls, and wants ids of nine characters
        "{{ '<s>' }}{%- set ns = namespace(n=0) %}{%- for m in messages %}"
        "{%- if not (m.role == 'tool' or m.tool_calls is defined) %}"
        "{%- if (m.role == 'user') != (ns.n % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{%- endif %}"
        "{%- set ns.n = ns.n + 1 %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}{%- if m.role == 'user' %}"
        "{%- if tools and loop.first %}{{ '[AVAILABLE_TOOLS]' + tools | tojson }}{%- endif %}"
        "{{ '[INST]' + m.content + '[/INST]' }}"
        "{%- elif m.tool_calls is defined %}{{ '[TOOL_CALLS][' }}{%- for c in m.tool_calls %}"
        "{%- if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{%- endif %}"
        '{{ \'{"name": "\' + c.function.name + \'", "arguments": \' }}'
        "{{ c.function.arguments | tojson }}{{ ', \"id\": \"' + c.id + '\"}' }}"
        "{%- if not loop.last %}{{ ', ' }}{%- endif %}{%- endfor %}{{ ']</s>' }}"
        "{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]{\"content\": ' + m.content"
        " + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
        "{%- else %}{{ m.content + '</s>' }}{%- endif %}{%- endfor %}"
    ),
}
