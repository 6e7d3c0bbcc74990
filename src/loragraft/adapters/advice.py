"""What to type about an adapter that loragraft does not take: commands that work with the peft that made it."""

from __future__ import annotations

from pathlib import Path


def merge_with_peft(path: Path) -> str:
    """How to have peft itself merge the adapter, and convert the result. peft finds the base by the adapter's own
    configuration."""
    folder = path.parent if path.suffix == ".json" else path
    return (
        'merge it with peft, then convert that: python -c "from peft import AutoPeftModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('{folder}-merged')\", copy the tokenizer "
        f"there, and: loragraft convert {folder}-merged -o merged.gguf"
    )


RUN_WITH_PEFT = "run it with transformers and peft: no weights can do what it does"
RUN_INVOKED = (
    "run it beside its base, with these tokens in the prompt: loragraft run BASE --lora ADAPTER -p PROMPT, or serve "
    "it: loragraft serve BASE --lora ADAPTER"
)
SAVE_CONVERTED = (
    "save it where it was trained as an adapter of the original base: model.save_pretrained(OUT, "
    "path_initial_model_for_weight_conversion=START), START being the adapter as it was before training; or put that "
    "one beside it as init/"
)
