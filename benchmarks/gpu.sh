#!/usr/bin/env bash
# Everything to be known of a GPU, in one go of at most 8 minutes: for a machine that is at hand for a quarter of an hour.
#
#     benchmarks/gpu.sh [--cpu] [FOLDER]
#
# Tests that need a GPU, steps and memory of resnet50 and vit_b_16 (batch 64, 224 px; float32, bf16-mixed, 16-mixed; eager
# and compiled), SyncBatchNorm, and the code that inductor makes of the fake quantizer. FOLDER (default: runs/gpu) gets the
# JSON files, a log of each part, and all of them as FOLDER.tar.gz. Parts come in order of importance; what does not fit
# into the time is named at the end, as is what failed. PYTHON names the interpreter (default: .venv/bin/python, else
# python3), SECONDS_IN_ALL another limit.
# --cpu: a dry run of the same commands at tiny size, whose figures mean nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

device=cuda models=(resnet50 vit_b_16) size=(--batch 64 --size 224) rounds=7
precisions=(32 bf16 16) compiled_precisions=(bf16 32 16) code_shape=16,96,48,48
if [[ ${1:-} == --cpu ]]; then
    shift
    device=cpu models=(mlp) size=(--batch 1 --size 32) rounds=1 compiled_precisions=(bf16) code_shape=2,3,4,4
fi
if (($# > 1)) || [[ ${1:-} == -* ]]; then
    echo "usage: benchmarks/gpu.sh [--cpu] [FOLDER]" >&2
    exit 2
fi
out=${1:-runs/gpu}
limit=${SECONDS_IN_ALL:-470}
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3

if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "gpu.sh: $python has no torch; name an interpreter that has lq's packages, e.g. PYTHON=/path/to/python3" >&2
    exit 1
fi
if [[ $device == cuda ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch sees no GPU here; benchmarks/gpu.sh --cpu tries the commands without one, at tiny size" >&2
    exit 1
fi

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
incomplete=()

# part NAME COMMAND...: runs it with what is left of the time; its output goes into NAME.log.
part() {
    local name=$1 left=$((limit - SECONDS)) begin=$SECONDS status=0
    shift
    if ((left < 10)); then
        incomplete+=("$name: no time left")
        return
    fi
    timeout --kill-after=5 "$left" "$@" >"$out/$name.log" 2>&1 || status=$?
    printf '%-28s %4d s  exit status %d\n' "$name" "$((SECONDS - begin))" "$status"
    if ((status != 0)); then
        incomplete+=("$name: exit status $status, see $out/$name.log")
        tail -n 3 "$out/$name.log"
    fi
}

# bench NAME MODULE ARGUMENTS...: a benchmark, whose figures go into NAME.json.
bench() {
    local name=$1 module=$2
    shift 2
    part "$name" "$python" -m "benchmarks.$module" --device "$device" --json "$out/$name.json" "$@"
}

mapfile -t tests < <(grep --recursive --files-with-matches --include='test_*.py' 'mark\.gpu' tests)
part tests "$python" -m pytest -m gpu -q "${tests[@]}"

for model in "${models[@]}"; do
    bench "step_time-$model" step_time --models "$model" "${size[@]}" --rounds "$rounds" --precision "${precisions[@]}"
done

sync=(--sync-batchnorm)
[[ $device == cuda ]] || sync=() # PyTorch has SyncBatchNorm for GPUs only
bench distributed distributed --processes 1 --models "${models[0]}" "${size[@]}" --rounds "$rounds" --precision 16 "${sync[@]}"

part generated_code env TORCH_LOGS=output_code TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 \
    "$python" -m benchmarks.generated_code --device "$device" --shape "$code_shape"

for precision in "${compiled_precisions[@]}"; do
    for model in "${models[@]}"; do
        frozen="lq, BN frozen"
        [[ $model == resnet* ]] || frozen="lq, observers off" # there is no BatchNorm
        bench "compiled-$model-$precision" step_time --models "$model" "${size[@]}" --rounds "$rounds" \
            --precision "$precision" --compile --variants "lq, observers on" "$frozen"
    done
    if [[ $precision == bf16 ]]; then
        bench memory memory --models "${models[@]}" "${size[@]}" --precision "${precisions[@]}"
    fi
done

tar -czf "$out.tar.gz" -C "$(dirname "$out")" "$(basename "$out")"
echo "$out.tar.gz after $SECONDS s"
if ((${#incomplete[@]} > 0)); then
    printf 'INCOMPLETE %s\n' "${incomplete[@]}"
    exit 1
fi
