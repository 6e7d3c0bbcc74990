"""Makes peft-alora.npz, in an environment with torch, transformers and peft 0.21.2: the logits of llama-kjv with
llama-kjv.shakespeare as an aLoRA of the tokens 400, 401. Usage: make_peft_alora.py MODELS-FOLDER"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

INVOCATION = [400, 401]
PROMPTS = [[7, 8, 9, 10, 11, 12, 13, 14, 400, 401, 20, 21], [400, 401, 5, 6, 400, 401, 9], [400, 401, 3]]

models = Path(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    adapter = Path(folder) / "adapter"
    shutil.copytree(models / "llama-kjv.shakespeare", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "alora_invocation_tokens": INVOCATION})
    )
    base = AutoModelForCausalLM.from_pretrained(models / "llama-kjv", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    found = {}
    with torch.no_grad():
        for number, prompt in enumerate(PROMPTS):
            logits = model(input_ids=torch.tensor([prompt])).logits[0].numpy()
            rows = sorted({0, len(prompt) // 2, len(prompt) - 3, len(prompt) - 1})
            found |= {f"ids{number}": prompt, f"rows{number}": rows, f"logits{number}": logits[rows]}
        ids = PROMPTS[0]
        for _ in range(12):
            ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        found["greedy"] = ids[len(PROMPTS[0]) :]
np.savez_compressed(Path(__file__).with_name("peft-alora.npz"), **found)
