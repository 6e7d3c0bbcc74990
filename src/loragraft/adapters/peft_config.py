"""adapter_config.json of PEFT: what is honoured, what is harmless, and everything else refused by name.

An unknown key with a value is refused too: a new PEFT option that changes the mathematics must not be skipped silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loragraft.adapters.advice import RUN_WITH_PEFT, merge_with_peft
from loragraft.adapters.invocation import invocation_tokens
from loragraft.adapters.methods import METHODS
from loragraft.adapters.methods.method import Method
from loragraft.errors import AdapterError
from loragraft.patterns import PatternError, SuffixTable

_INVOCATION = "alora_invocation_tokens"
_HONOURED = {
    _INVOCATION,
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "use_qalora",
    "qalora_group_size",
    "target_parameters",
    "modules_to_save",
    "trainable_token_indices",
    "lora_bias",
    "bias",
}

#: Keys that say the ranks and scales of a LoRA's modules.
SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
#: Keys that say how the adapter was trained or found, and do not change what its tensors mean. `fan_in_fan_out` is
#: about the layout of the base's own weight; GGUF's is always (out, in), so the delta is B A either way.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}

#: Names in one list; each is compared with the name of each module.
_MAX_NAMES = 1024

#: Why the keys that are refused cannot be ignored.
_REFUSED = {
    "arrow_config": "it chooses among adapters by the input",
    "layer_replication": "it repeats layers of the base",
}
#: Keys of the tuners' base classes that every method may have.
_COMMON = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
}
#: Methods of PEFT that no merged weight can stand for: they put tokens or vectors before the text, choose by the input,
#: or compute beside the layers. PEFT's own merge_and_unload refuses them (tests/data/golden/peft-methods.json).
UNMERGEABLE = frozenset(
    """
    ADAPTION_PROMPT CARTRIDGE CPT LILY MULTITASK_PROMPT_TUNING POLY PREFIX_TUNING PROMPT_TUNING P_TUNING SHADOW XLORA
    """.split()  # noqa: SIM905
)

#: Initialisations that leave the base as it was; the others took something out of it.
_KIND_INITS = {True, False, None, "gaussian", "orthogonal", "eva", "mica"}
#: Those of which it can be computed again what they took.
COMPUTED_STARTS = ("olora", "pissa")


@dataclass(frozen=True)
class LoraSettings:
    """The scale of every module's delta. `rank_pattern` and `alpha_pattern` are regular expressions on module names,
    of which the first that matches counts."""

    path: Path
    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: SuffixTable = field(default_factory=SuffixTable)
    alpha_pattern: SuffixTable = field(default_factory=SuffixTable)
    parameters: tuple[str, ...] = ()
    """target_parameters: the ends of the names of parameters that are adapted without being a module's weight."""
    swapped_experts: bool = False
    """Whether it is from a PEFT that took a stack of experts [E, out, in] for [E, in, out] (before 0.19)."""
    saved: tuple[str, ...] = ()
    """modules_to_save: the ends of the names of modules that were trained as a whole."""
    token_ids: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """trainable_token_indices: the numbers of the rows that were trained alone, by the end of the module's name; under
    "" those of the input embedding."""
    lora_bias: bool = False
    dora: bool = False
    start: str | None = None
    """`init_lora_weights`, where it took something out of the base that the adapter was trained beside."""
    qalora_group: int | None = None
    """How many inputs QALoRA pools into one."""
    invocation: tuple[int, ...] = ()
    """alora_invocation_tokens: it works from these tokens on."""
    method: Method | None = None
    """Another method than LoRA, of which the fields above say nothing but `saved` and `token_ids`."""

    def rank_of(self, name: str) -> int:
        return int(self.rank_pattern.find(self._full(name), self.rank))

    def alpha_of(self, name: str) -> float:
        return float(self.alpha_pattern.find(self._full(name), self.alpha))

    def _full(self, name: str) -> str:
        """What the patterns see of a module: where target_parameters names its weight, the parameter's name."""
        weight = f"{name}.weight"
        named = any(f".{weight}".endswith(f".{parameter}") for parameter in self.parameters)
        return weight if named else name

    def scale_of(self, name: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (rank**0.5 if self.rslora else rank)

    def token_ids_of(self, module: str) -> Sequence[int] | None:
        """The numbers of the rows of `module` that were trained alone."""
        return next((ids for name, ids in self.token_ids.items() if module.endswith(name)), None)

    @property
    def global_alpha(self) -> float | None:
        """The one alpha whose quotient by each module's rank is its scale, if there is one."""
        return None if self.rslora or self.alpha_pattern else self.alpha


def read_settings(path: Path, config: Mapping[str, Any]) -> LoraSettings:
    """The settings in `config`, the object in the file at `path`.

    Raises AdapterError naming the first key that is not supported, or that makes no sense.
    """
    kind = config.get("peft_type")
    if isinstance(kind, str) and kind in METHODS:
        return _method_settings(path, config, METHODS[kind])
    if kind != "LORA":
        raise AdapterError(
            path,
            f"is an adapter of a method that is not supported, {str(kind)[:40]}"
            if isinstance(kind, str)
            else "does not say what method of peft it is",
            found=f"peft_type {kind!r}"[:80],
            expected=f"{', '.join(sorted(['LORA', *METHODS]))}",
            hint=_advice(path, kind),
        )
    for key, value in config.items():
        _refuse_unknown(path, key, value)
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise AdapterError(
            path, "bad bias", found=repr(config["bias"])[:80], expected="none, all or lora_only"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    return LoraSettings(
        path,
        _number(path, "r", rank, whole=True),
        _number(path, "lora_alpha", alpha),
        bool(config.get("use_rslora")),
        _pattern(path, "rank_pattern", config, whole=True),
        _pattern(path, "alpha_pattern", config),
        _names(path, "target_parameters", config),
        _version(config.get("peft_version")) < (0, 19),
        _names(path, "modules_to_save", config),
        _token_ids(path, config.get("trainable_token_indices")),
        bool(config.get("lora_bias")),
        bool(config.get("use_dora")),
        _start(config.get("init_lora_weights")),
        _number(path, "qalora_group_size", config.get("qalora_group_size", 16), whole=True)
        if config.get("use_qalora")
        else None,
        invocation_tokens(path, _INVOCATION, config[_INVOCATION]) if config.get(_INVOCATION) else (),
    )


def _advice(path: Path, kind: object) -> str:
    if not isinstance(kind, str) or kind.upper() in {"LORA", *METHODS}:
        return f'if it is a plain LoRA of peft, write so into {path}: "peft_type": "LORA"'
    return RUN_WITH_PEFT if kind in UNMERGEABLE else merge_with_peft(path)


def _start(value: Any) -> str | None:
    return value if isinstance(value, str) and value not in _KIND_INITS else None


def _method_settings(path: Path, config: Mapping[str, Any], method: Method) -> LoraSettings:
    for key, value in config.items():
        known = key in _COMMON or key in method.honoured or key in method.harmless
        if not (known or value in (None, False, "none", [], {}, "")):
            raise AdapterError(
                path,
                f"{key} is not supported: loragraft does not know what it does to the weights",
                found=repr(value)[:80],
                expected="it not to be set",
                hint=merge_with_peft(path),
            )
    ids = config.get("token_indices")
    targets = config.get("target_modules")
    if method.peft_type == "TRAINABLE_TOKENS":
        names = targets if isinstance(targets, list) and targets else ["embed_tokens"]
        tables = dict.fromkeys(map(str, names), ids)
    return LoraSettings(
        path,
        1,
        1.0,
        saved=_names(path, "modules_to_save", config),
        token_ids=_token_ids(path, tables) if method.peft_type == "TRAINABLE_TOKENS" else {},
        method=method,
    )


def _refuse_unknown(path: Path, key: str, value: Any) -> None:
    if key in _HONOURED or key in _HARMLESS:
        return
    if key == "init_lora_weights":
        if not isinstance(value, bool | str | None):
            raise AdapterError(path, "bad init_lora_weights", found=repr(value)[:80], expected="a name")
        return
    if value in (None, False, "none") or (isinstance(value, list | dict | str) and not value):
        return
    reason = _REFUSED.get(key, "loragraft does not know what it does to the weights")
    hint = RUN_WITH_PEFT if key == "arrow_config" else merge_with_peft(path)
    if key == "invocation_string":  # of aLoRA, before PEFT had it
        reason = "peft has tokens in its place"
        hint = (
            f"write its tokens into {path} as {_INVOCATION}; they are: "
            "loragraft tokenize BASE -p TEXT --parse-special --no-add-special"
        )
    raise AdapterError(
        path,
        f"{key} is not supported: {reason}",
        found=repr(value)[:80],
        expected="it not to be set",
        hint=hint,
    )


def _number(path: Path, key: str, value: Any, *, whole: bool = False) -> Any:
    wanted: Any = int if whole else (int, float)
    least = 0 if whole else -1e9
    if isinstance(value, bool) or not isinstance(value, wanted) or not least < value < 1e9 or not value:
        raise AdapterError(
            path,
            f"bad {key}",
            found="none" if value is None else repr(value)[:80],
            expected="a whole number > 0" if whole else "a number other than 0",
            hint=f"write the {key} of the training into {path}: "
            + (
                "it is the number of rows of every lora_A"
                if whole
                else "0 would switch the adapter off; peft's own default is 8"
            ),
        )
    return value


def _names(path: Path, key: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get(key) or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise AdapterError(path, f"bad {key}", found=repr(names)[:80], expected="a list of names")
    if len(names) > _MAX_NAMES:
        raise AdapterError(
            path, f"{key} has too many names", found=len(names), expected=f"at most {_MAX_NAMES}"
        )
    return tuple(names)


def _token_ids(path: Path, value: Any) -> dict[str, list[int]]:
    tables = value if isinstance(value, dict) else {"": value} if value else {}
    if len(tables) > _MAX_NAMES:
        raise AdapterError(path, "trainable_token_indices has too many modules", found=len(tables))
    for ids in tables.values():
        if not isinstance(ids, list) or not all(type(id_) is int and 0 <= id_ < 1 << 31 for id_ in ids):
            raise AdapterError(
                path, "bad trainable_token_indices", found=repr(ids)[:80], expected="a list of token ids"
            )
        if len(set(ids)) != len(ids):
            raise AdapterError(path, "trainable_token_indices names a token twice", found=repr(ids)[:80])
    return tables


def _pattern(path: Path, key: str, config: Mapping[str, Any], *, whole: bool = False) -> SuffixTable:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise AdapterError(path, f"bad {key}", found=repr(table)[:80], expected="an object")
    for expression, value in table.items():
        _number(path, f"{key}[{expression!r}]", value, whole=whole)
    try:
        return SuffixTable(table)
    except PatternError as problem:
        raise AdapterError(
            path, f"{key} has a bad expression: {problem}", hint="name the modules in full instead"
        ) from None


def _version(text: Any) -> tuple[int, ...]:
    """`0.21.2` as (0, 21, 2); an adapter that names none is older than the field."""
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", str(text))
    return tuple(map(int, numbers.groups())) if numbers else (0, 0)
