"""Writes chat-templates.json: what transformers' apply_chat_template makes of templates of the common forms.

python tests/data/golden/make_chat_templates.py        (needs transformers and jinja2)
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "header": """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{%- set tools = none %}{%- endif %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}""",
    "instruct": """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{% continue %}{% endif %}
{% if (message['role'] == 'user') %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}""",
    "json": """{% for m in messages %}{{ m | tojson }}{{ [1, "é<b>"] | tojson(indent=2) }}
{% endfor %}{% if tools is defined and tools %}tools{% endif %}""",
}
CONVERSATIONS = [
    [{"role": "user", "content": " What say you, <b>friend</b>? "}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "é ☃"},
        {"role": "assistant", "content": "Aye."},
        {"role": "user", "content": "Again!"},
    ],
]

cases = []
for name, template in TEMPLATES.items():
    texts, _ = render_jinja_template(
        CONVERSATIONS, chat_template=template, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    cases.append({"name": name, "template": template, "conversations": CONVERSATIONS, "texts": texts})
Path(__file__).with_name("chat-templates.json").write_text(
    json.dumps(cases, indent=1, ensure_ascii=False) + "\n"
)
