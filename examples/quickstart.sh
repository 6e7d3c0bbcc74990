#!/bin/sh
# The main job, end to end: merge, quantize, compare, talk. Writes to ./quickstart; `make quickstart` runs it.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
base=examples/llama-kjv adapter=examples/llama-kjv.shakespeare text=examples/shakespeare-valid.txt out=quickstart
mkdir -p "$out"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') off=$(printf '\033[0m'); else bold='' dim='' off=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$1" "$off"; }
run() { printf '%s$ loragraft' "$dim"; for word; do case $word in *' '*) printf ' "%s"' "$word";; *) printf ' %s' "$word";; esac; done; printf '%s\n' "$off"; loragraft "$@"; }

say "1. Base and adapter in, one quantized file out. No 16-bit file in between:"
run merge $base --lora $adapter -o $out/tuned.Q4_K_M.gguf --type Q4_K_M

say "2. The two-step way gives the same bytes:"
run merge $base --lora $adapter -o $out/tuned.F16.gguf --type F16
run quantize $out/tuned.F16.gguf $out/two-step.Q4_K_M.gguf Q4_K_M
cmp $out/tuned.Q4_K_M.gguf $out/two-step.Q4_K_M.gguf && echo "identical: tuned.Q4_K_M.gguf and two-step.Q4_K_M.gguf"

say "3. The base was raised on the King James Bible. It goes on like this:"
run run $base -p "What say you," -n 60 --temp 0.7 --seed 1

say "   The tuned model has read Shakespeare:"
run run $out/tuned.Q4_K_M.gguf -p "What say you," -n 60 --temp 0.7 --seed 1

say "4. Did the fine-tune survive? Measured on Shakespeare that neither has seen:"
run compare --base $base --lora $adapter --text $text --context 256

say "Next"
next() { printf '  %s# %s%s\n  loragraft %s\n' "$dim" "$2" "$off" "$1"; }
next "merge YOUR-MODEL --lora YOUR-ADAPTER -o out.gguf --type Q4_K_M" "your own: a Hugging Face folder or a GGUF"
next "run $out/tuned.Q4_K_M.gguf -p ROMEO:" "talk to the tuned model"
next "run $base --lora $adapter=0.5 -p ROMEO:" "half the adapter, at run time"
next "budget $base --lora $adapter --text $text" "the types of one size that keep the most of it"
next "inspect $out/tuned.Q4_K_M.gguf" "what is in the file"
next "check $base --lora $adapter" "how every layer is computed"
next "--help" "everything else"

say "Serve it: OpenAI's API, and a page in the browser at http://127.0.0.1:8080"
printf '  %s\n' "$PWD/.venv/bin/pip install 'loragraft[serve] @ file://$PWD'"
next "serve $out/tuned.Q4_K_M.gguf" "what was made"
next "serve $base --lora poet=$adapter" "the base, the adapter beside it at any strength"
